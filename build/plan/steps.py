"""A build step for TensorRT-LLM: one shell command with what it reads, what it writes and where it runs.

A build is a tuple of steps in order (`build_steps`). Whoever makes the steps only describes them; printing,
running and resuming is the plan's business (`build.plan.run`).

Example::

    step = Step(
        name="build-target",
        command=("trtllm-build", "--checkpoint_dir=runs/x/checkpoint", "--output_dir=runs/x/engine"),
        inputs=(Path("runs/x/checkpoint"),),
        outputs=(Path("runs/x/engine"),),
        image="nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
    )
    print(step.shell())     # trtllm-build --checkpoint_dir=runs/x/checkpoint --output_dir=runs/x/engine
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Step:
    """One command of a build.

    Attributes:
        name: lower-case words with hyphens, unique in its plan; names the log and what is remembered of the step.
        command: program and arguments, no shell syntax. Paths are written as in `inputs` and `outputs`.
        inputs: files and directories that it reads; what an earlier step wrote stands here too, which orders
            and connects the steps. A path that does not exist when the step is due is an error.
        outputs: files and directories that it writes, each named in `command` with exactly this spelling,
            because the plan has them written beside their place and renames them when the command has succeeded.
            No output lies within another.
        environment: variables beside those of the caller.
        image: container image that the command runs in, used when Docker Compose runs it.

    Raises:
        ValueError: a field breaks one of these rules.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    image: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"step name {self.name!r} must be lower-case words with hyphens")
        if not self.command or not self.command[0]:
            raise ValueError(f"step {self.name} has no command")
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"step {self.name}: {name!r} is no name of an environment variable")
        for output in self.outputs:
            if not any(mentions(argument, output) for argument in self.command):
                raise ValueError(f"step {self.name} does not name its output {output} in its command")
            if any(output in other.parents for other in self.outputs):
                raise ValueError(f"step {self.name}: another output lies within {output}")

    def shell(self) -> str:
        """The command as one line that can be pasted into a shell, variables in front."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.command)])

    def writing_to(self, places: Mapping[Path, Path]) -> "Step":
        """The same step with other outputs: each key of `places` becomes its value, in the command too."""
        command = self.command
        for output, place in places.items():
            command = tuple(_renamed(argument, output, place) for argument in command)
        outputs = tuple(places.get(output, output) for output in self.outputs)
        return replace(self, command=command, outputs=outputs)


def interpreter() -> str:
    """This Python, as somebody in the working directory would write it."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def mentions(argument: str, path: Path) -> bool:
    """Whether an argument names this path, alone or in it (`--output_dir=PATH`, `PATH/config.json`)."""
    return _pattern(path).search(argument) is not None


def _renamed(argument: str, path: Path, place: Path) -> str:
    return _pattern(path).sub(lambda match: str(place), argument)


def _pattern(path: Path) -> re.Pattern[str]:
    """The path as a whole: not the beginning of a longer name, nor the end of a longer path."""
    return re.compile(rf"(?<![\w.{re.escape(os.sep)}-]){re.escape(str(path))}(?![\w.-])")
