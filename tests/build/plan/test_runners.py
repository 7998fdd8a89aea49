"""Docker Compose: the command line, with a stand-in for `docker` that does what it is told without a container."""

import itertools
import shlex
import sys
from pathlib import Path

import pytest

from build.plan.run import PlanError, run_plan, script
from build.plan.runners import IMAGE_VARIABLE, ComposeRunner
from build.plan.steps import Step
from tests.build.plan.plans import hanging, joining

RUNNER = ComposeRunner(Path("line-a.env"))
_DOCKER = f"""#!{sys.executable}
import os, pathlib, sys
arguments = sys.argv[1:]
with open("docker.log", "a") as log:
    print(os.environ.get("{IMAGE_VARIABLE}"), arguments, file=log)
if arguments[0] == "rm":
    sys.exit()
place = arguments.index("build", 4)
for name, value in zip(arguments[:place], arguments[1:place]):
    if name == "--env":
        os.environ.__setitem__(*value.split("=", 1))
os.execvp(arguments[place + 1], arguments[place + 1:])
"""


@pytest.fixture(autouse=True)
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on PATH with the stand-in, and an empty working directory."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(_DOCKER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def imaged(step: Step, image: str) -> Step:
    return Step(step.name, step.command, step.inputs, step.outputs, step.environment, image)


def test_a_step_runs_in_the_build_service_with_its_image() -> None:
    step = imaged(joining("build", "b", Path("out/engine"), GREETING="two words"), "image:1")
    assert run_plan((step,), Path("plan"), RUNNER) == ("build",)
    assert Path("out/engine").read_text() == "b"
    assert "two words" in Path("plan/logs/build.log").read_text()
    assert (
        Path("docker.log").read_text().startswith("image:1 ['compose', '--env-file', 'line-a.env', 'run', ")
    )
    assert run_plan((step,), Path("plan"), RUNNER) == ()
    other = imaged(step, "image:2")
    assert run_plan((other,), Path("plan"), RUNNER) == ("build",)


def test_a_step_without_an_image_runs_here() -> None:
    step = joining("collect", "c", Path("repository"), GREETING="hello")
    assert run_plan((step,), Path("plan"), RUNNER) == ("collect",)
    assert "hello" in Path("plan/logs/collect.log").read_text()
    assert not Path("docker.log").exists()


def test_paths_outside_the_working_directory_are_mounted(tmp_path: Path) -> None:
    model, engine = tmp_path / "elsewhere" / "model", tmp_path / "engines" / "engine"
    Path("linked").symlink_to(tmp_path / "disk")
    step = imaged(joining("build", "b", engine, model, Path("inside"), Path("linked/heads")), "image:1")
    command = RUNNER.command(step)
    mounts = [value for name, value in itertools.pairwise(command) if name == "--volume"]
    heads = tmp_path / "disk" / "heads"
    assert mounts == [f"{model}:{model}:ro", f"{heads}:{heads}:ro", f"{engine.parent}:{engine.parent}:rw"]


def test_the_printed_line_is_the_command_with_its_image() -> None:
    step = imaged(joining("build", "b", Path("out/engine")), "image:1")
    title, folders, line = script((step,), RUNNER).split("\n", 2)
    assert (title, folders) == ("# 1/1 build (image:1)", "mkdir -p out")
    assert shlex.split(line) == [f"{IMAGE_VARIABLE}=image:1", *RUNNER.command(step)]


def test_an_interrupted_container_is_removed() -> None:
    def show(line: str) -> None:
        if "  grandchild " in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step = imaged(hanging("build", Path("out/engine")), "image:1")
        run_plan((step,), Path("plan"), RUNNER, show=show)
    started, removed = Path("docker.log").read_text().splitlines()
    name = removed.split("'")[-2]
    assert "'rm', '--force'" in removed and f"'--name', '{name}'" in started


def test_without_docker_the_way_to_it_is_told(docker: Path) -> None:
    (docker / "docker").unlink()
    with pytest.raises(PlanError, match="docker is not installed here; see https"):
        run_plan((imaged(joining("build", "b", Path("o")), "image:1"),), Path("plan"), RUNNER)
