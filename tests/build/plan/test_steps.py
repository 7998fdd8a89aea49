"""A step: what can be pasted, what is refused, and outputs written elsewhere."""

import shlex
from pathlib import Path

import pytest

from build.plan.steps import Step, mentions

CHECKPOINT, ENGINE = Path("runs/x/checkpoint"), Path("runs/x/engine")


def step(**changes: object) -> Step:
    fields: dict[str, object] = {
        "name": "build-target",
        "command": ("trtllm-build", "--checkpoint_dir", str(CHECKPOINT), f"--output_dir={ENGINE}"),
        "inputs": (CHECKPOINT,),
        "outputs": (ENGINE,),
    }
    return Step(**(fields | changes))


def test_the_shell_line_splits_into_the_command_again() -> None:
    command = ("run.py", "--medusa_choices", "[[0], [0, 0]]", "it's", "$HOME", "a;b", str(ENGINE))
    line = step(command=command, environment={"TLLM_LOG_LEVEL": "INFO", "GREETING": "two words"}).shell()
    assert shlex.split(line) == ["TLLM_LOG_LEVEL=INFO", "GREETING=two words", *command]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "Build target"}, "lower-case words"),
        ({"command": ()}, "no command"),
        ({"outputs": (Path("runs/elsewhere"),)}, "does not name its output runs/elsewhere"),
        (
            {"outputs": (Path("runs/x"), ENGINE), "command": ("x", "runs/x", str(ENGINE))},
            "lies within runs/x",
        ),
        ({"environment": {"a-b": "1"}}, "no name of an environment variable"),
    ],
)
def test_what_the_plan_could_not_run_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        step(**changes)


def test_outputs_move_and_nothing_else() -> None:
    longer, inside = "runs/x/engine2", "runs/x/engine/config.json"
    original = step(
        command=("build", str(ENGINE), longer, inside, f"/runs/{ENGINE}", f"a={ENGINE},{CHECKPOINT}")
    )
    place = Path("runs/x/.engine.partial")
    moved = original.writing_to({ENGINE: place})
    assert moved.outputs == (place,)
    assert moved.command == (
        *("build", str(place), longer, f"{place}/config.json"),
        *(f"/runs/{ENGINE}", f"a={place},{CHECKPOINT}"),
    )
    assert original.outputs == (ENGINE,)


def test_a_path_is_mentioned_as_a_whole_only() -> None:
    assert mentions("--output_dir=runs/x/engine", ENGINE)
    assert not mentions("--output_dir=runs/x/engine-draft", ENGINE)
    assert not mentions("--output_dir=old/runs/x/engine", ENGINE)
