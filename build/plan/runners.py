"""Where the commands of a build run: here, inside the container, or each in a container that Docker Compose starts.

Paths in steps are relative to the working directory, which `docker-compose.yml` mounts as the build container's
working directory; what lies elsewhere is mounted under its own path.

Example::

    runner = ComposeRunner(Path("deploy/compose/line-a.env"))
    runner.command(step)       # docker compose --env-file deploy/compose/line-a.env run --rm ... build trtllm-build ...
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from build.plan.steps import Step

BUILD_SERVICE = "build"
"""Name of the service in `docker-compose.yml` that build commands run in."""
IMAGE_VARIABLE = "TENSORRT_LLM_BUILD_IMAGE"
"""Variable that `docker-compose.yml` takes the build service's image from."""


class Runner(Protocol):
    """What the plan asks of a place to run commands."""

    def command(self, step: Step) -> tuple[str, ...]:
        """The full command line that runs the step."""

    def environment(self, step: Step) -> Mapping[str, str]:
        """Variables that command line needs beside ours."""

    def tools(self, step: Step) -> Mapping[str, str]:
        """Versions of what runs the step; a step is done again when one differs."""

    def cannot_start(self, step: Step) -> str:
        """What to tell when the program of `command` is missing."""

    def end(self, step: Step) -> None:
        """Called when a command was interrupted, after its processes here have ended."""


class LocalRunner:
    """Runs commands as they are: inside NVIDIA's container, or where their programs are installed."""

    def __init__(self, versions: Mapping[str, str] | None = None) -> None:
        """`versions` are those of what is installed here and decides what commands write."""
        self._versions = versions or {}

    def command(self, step: Step) -> tuple[str, ...]:
        """The step's own command."""
        return step.command

    def environment(self, step: Step) -> Mapping[str, str]:
        """The step's own variables."""
        return step.environment

    def tools(self, step: Step) -> Mapping[str, str]:
        """Those that it was made with."""
        return self._versions

    def cannot_start(self, step: Step) -> str:
        """Names the program and where it is to be found."""
        inside = f"; run this inside {step.image}, or with --runner compose" if step.image else ""
        return f"{step.command[0]} is not installed here{inside}"

    def end(self, step: Step) -> None:
        """Nothing remains."""


class ComposeRunner:
    """Runs each command in a container of its own: `docker compose run --rm build ...`."""

    def __init__(self, env_file: Path) -> None:
        """`env_file` says what Compose needs to know of the release line: `deploy/compose/line-a.env`."""
        self._env_file = env_file

    def command(self, step: Step) -> tuple[str, ...]:
        """The step's command behind `docker compose run`, as the calling user, so that outputs are theirs.

        A step without an image runs here.
        """
        if not step.image:
            return step.command
        variables = [part for item in step.environment.items() for part in ("--env", "=".join(item))]
        mounts = [part for mount in _mounts(step) for part in ("--volume", mount)]
        return (
            *("docker", "compose", "--env-file", str(self._env_file)),
            *("run", "--rm", "--no-deps", "-T", "--name", _container(step)),
            *("--user", f"{os.getuid()}:{os.getgid()}", *variables, *mounts, BUILD_SERVICE, *step.command),
        )

    def environment(self, step: Step) -> Mapping[str, str]:
        """The image, for `docker-compose.yml`; the step's own variables are in the command."""
        return {IMAGE_VARIABLE: step.image} if step.image else step.environment

    def tools(self, step: Step) -> Mapping[str, str]:
        """The image."""
        return {"image": step.image}

    def cannot_start(self, step: Step) -> str:
        """Names what is missing."""
        if not step.image:
            return f"{step.command[0]} is not installed here"
        return (
            "docker is not installed here; see https://docs.docker.com/engine/install/, or use --runner local"
        )

    def end(self, step: Step) -> None:
        """Remove the container if it outlived the client that started it."""
        if step.image and shutil.which("docker"):
            subprocess.run(["docker", "rm", "--force", _container(step)], capture_output=True, check=False)


def _container(step: Step) -> str:
    """A name that no other deployment's step has."""
    places = "\n".join(str(output.absolute().parent) for output in step.outputs)
    return f"drafthouse-{step.name}-{hashlib.sha256(places.encode()).hexdigest()[:8]}"


def _mounts(step: Step) -> list[str]:
    """Mounts for what lies outside the working directory: inputs read-only, the places of outputs writable.

    They have the path that they have here, so links in the working directory lead to them there, too.
    """
    mounts = {
        place: mode
        for paths, mode in ((step.inputs, "ro"), ([output.parent for output in step.outputs], "rw"))
        for path in paths
        if (place := path if path.is_absolute() else path.resolve()) and not _within_reach(place)
    }
    return [f"{place}:{place}:{mode}" for place, mode in mounts.items()]


def _within_reach(place: Path) -> bool:
    return place.resolve().is_relative_to(Path.cwd())
