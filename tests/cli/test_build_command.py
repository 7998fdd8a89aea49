"""`drafthouse build` for every example: printed commands, checks, exit codes, and what is really built."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from build.trtllm.engines import tools
from build.trtllm.engines.tools import Tool, problem_of
from build.trtllm.resolved import Supported
from build.trtllm.support.matrix import SUPPORT_MATRIX, resolve
from cli.main import app
from deployments.spec import load_spec
from tests.build.trtllm.checkpoints import eagle3_models

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "deployments").glob("*trtllm*.yaml"))
TOOLS = [tool for tool in vars(tools).values() if isinstance(tool, Tool)]


def drafthouse(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, no programs but Python, and this checkout's modules for children."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def commands(printed: str) -> list[list[str]]:
    """The printed commands without comments, `mkdir` and variables."""
    words = [
        shlex.split(line) for line in printed.splitlines() if line and not line.startswith(("#", "mkdir "))
    ]
    return [[word for index, word in enumerate(line) if index or "=" not in word] for line in words]


def test_there_is_an_example_for_every_cell() -> None:
    supported = {
        (line, runtime, method)
        for (line, runtime), methods in SUPPORT_MATRIX.items()
        for method, entry in methods.items()
        if isinstance(entry, Supported) and method != "none"
    }
    resolved = [resolve(load_spec(path)) for path in EXAMPLES]
    assert {(item.line.name, item.runtime, item.method) for item in resolved} == supported


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_commands_of_existing_flags(path: Path) -> None:
    result = drafthouse("build", "--dry-run", "--runner", "local", path)
    assert result.exit_code == 0, result.output
    assert load_spec(path).name == path.stem
    assert path.read_text().startswith("# ")
    *steps, collect = commands(result.stdout)
    assert collect[1:4] == ["-m", "build.trtllm.repository", str(path)]
    for command in steps:
        if command[1:3] == ["-m", "build.converters"]:
            continue
        program = command[0] if command[0] != "python3" else command.pop(1)
        (tool,) = [tool for tool in TOOLS if program.endswith(tool.name.removeprefix("examples"))]
        for word in command[1:]:
            flag, has_value, value = word.removeprefix("--").partition("=")
            assert word.startswith("--") and problem_of(tool, flag, value if has_value else None) is None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_by_docker_compose_each_command_with_an_image_is_wrapped(path: Path) -> None:
    local = commands(drafthouse("build", "--dry-run", "--runner", "local", path).stdout)
    compose = commands(drafthouse("build", "--dry-run", path).stdout)
    assert compose[-1] == local[-1]
    for inner, outer in zip(local[:-1], compose[:-1], strict=True):
        if inner[3] == "eagle3":  # NVIDIA's programs have no part in it
            assert outer == inner
            continue
        assert outer[:2] == ["docker", "compose"]
        assert outer[-len(inner) - 1 :] == ["build", *inner]


def changed(path: Path, **sections: Any) -> Path:
    """A copy of an example with other values."""
    content = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values}
    copy = Path("changed.yaml")
    copy.write_text(yaml.safe_dump(content))
    return copy


EAGLE3 = ROOT / "deployments" / "llama3-8b-eagle3-trtllm.yaml"
DRAFT = ROOT / "deployments" / "llama3-8b-draft-trtllm.yaml"
ANPD = ROOT / "deployments" / "smollm2-anpd.yaml"


def test_check_of_a_missing_model_ends_with_two_and_a_table() -> None:
    result = drafthouse("build", "--check", DRAFT)
    assert result.exit_code == 2
    assert "error: model-missing" in result.output and "models/llama3-8b does not exist" in result.output


def test_warnings_do_not_fail() -> None:
    spec = changed(EAGLE3, target={"model": "a/target"}, speculation={"checkpoint": "a/drafter"})
    result = drafthouse("build", "--check", spec)
    assert result.exit_code == 0, result.output
    assert "warning: model-missing" in result.output
    assert "nothing speaks against building llama3-8b-eagle3-trtllm" in result.output


def test_a_refused_method_is_told_before_anything_is_printed_or_built() -> None:
    spec = changed(EAGLE3, speculation={"method": "medusa", "checkpoint": "heads", "draft_length": None})
    spec.write_text(spec.read_text().replace("  draft_length: null\n", "").replace("line: A", "line: B"))
    for arguments in (["--dry-run"], ["--check"], []):
        result = drafthouse("build", *arguments, spec)
        assert result.exit_code == 2, result.output
        assert "error: not-in-this-line" in result.stderr and "Medusa went with" in result.stderr
        assert result.stdout == ""
    assert not Path("runs").exists()


def test_the_llm_api_s_repository_is_built_and_not_built_again() -> None:
    eagle3_models(Path("models"), eagle_config={"eagle_aux_hidden_state_layer_ids": [0, 3, 7]})
    first = drafthouse("build", EAGLE3)
    assert first.exit_code == 0, first.output
    assert "1/2 convert-eagle3: done" in first.output and "2/2 collect: done" in first.output
    config = yaml.safe_load(
        Path("runs/model_repo/llama3-8b-eagle3-trtllm/tensorrt_llm/1/model.yaml").read_text()
    )["speculative_config"]
    assert (config["decoding_type"], config["eagle3_layers_to_capture"]) == ("Eagle", [0, 3, 7])
    converted = json.loads((Path(config["speculative_model_dir"]) / "config.json").read_text())
    assert converted["architectures"] == [
        "LlamaForCausalLM"
    ]  # which 1.2.1 knows, as it does no EAGLE-3 drafter
    again = drafthouse("build", EAGLE3).output
    assert "1/2 convert-eagle3: up to date" in again and "2/2 collect: up to date" in again
    spec = changed(EAGLE3, speculation={"draft_length": 5})
    assert "2/2 collect: done" in drafthouse("build", spec).output


def test_a_drafter_that_the_line_does_not_compute_is_refused_before_its_repository_is_written() -> None:
    eagle3_models(Path("models"), norm_before_residual=True)
    result = drafthouse("build", EAGLE3)
    assert result.exit_code == 2
    assert "norm_before_residual, which TensorRT-LLM 1.2.1 does not compute" in result.output
    assert not Path("runs/model_repo").exists()


def test_the_embedded_engine_is_checked_and_printed_too() -> None:
    assert drafthouse("build", "--check", ANPD).exit_code == 0
    lines = drafthouse("build", "--dry-run", ANPD).stdout.splitlines()
    assert lines == ["drafthouse model smollm2-135m models/smollm2-135m", f"drafthouse build {ANPD}"]


@pytest.mark.parametrize(
    ("speculation", "name"),
    [
        ({"method": "redrafter", "checkpoint": "head"}, "method-without-speculator"),
        ({"method": "anpd", "acceptance_gate": {"window": 8, "min_rate": 0.3}}, "setting-without-effect"),
    ],
)
def test_what_the_embedded_engine_cannot_do_is_refused(speculation: dict[str, Any], name: str) -> None:
    spec = changed(ANPD)
    content = yaml.safe_load(spec.read_text()) | {"speculation": speculation}
    spec.write_text(yaml.safe_dump(content))
    for arguments in (["--dry-run"], ["--check"], []):
        result = drafthouse("build", *arguments, spec)
        assert result.exit_code == 2
        assert f"error: {name}" in result.output
    assert not Path("runs").exists()


@pytest.mark.parametrize("arguments", [["--check"], []])
def test_a_directory_of_somebody_else_s_is_no_place_for_a_repository(arguments: list[str]) -> None:
    precious = Path("precious")
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    result = drafthouse("build", *arguments, changed(EAGLE3, serving={"repository": "precious"}))
    assert result.exit_code == 2
    assert "error: not-the-kit-s-own" in result.stderr
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]
