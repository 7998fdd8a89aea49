"""What the commands share: the console, the spec argument, and how failures are told."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from build.targets.errors import TargetError
from client.errors import ClientError
from deploy.triton import TritonError
from deployments.spec import DeploymentSpec, SpecError, load_spec
from engine.manifest import EngineError
from loadtest.prompts import PromptFileError
from loadtest.run_directory import RunDirectoryError
from loadtest.sweep import SweepError

# Tables keep their columns in a pipe or a log file, where no terminal gives a width.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True, highlight=False)

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="Deployment spec, a YAML file.")]

_EXPECTED = (
    *(SpecError, TargetError, EngineError, TritonError, ClientError),
    *(PromptFileError, RunDirectoryError, SweepError, OSError),
)


@contextmanager
def told() -> Iterator[None]:
    """Tell expected failures in a line and leave with status 2; Ctrl-C with 130."""
    try:
        yield
    except _EXPECTED as error:
        errors.print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        errors.print("stopped")
        raise SystemExit(130) from None


def read_spec(path: Path) -> DeploymentSpec:
    """The spec, or exit status 2 with what is wrong in it."""
    return load_spec(path)


@contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """A progress line; the function it gives takes a message and the share done (None: unknown)."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(message: str, share: float | None = None) -> None:
            bar.update(
                task,
                description=_escaped(message),
                total=None if share is None else 1.0,
                completed=share or 0,
            )

        yield show


def commit() -> str | None:
    """The checked-out commit, if this is a checkout."""
    root = Path(__file__).resolve().parents[1]
    found = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
