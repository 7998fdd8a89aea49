"""What the commands share: the console, the spec argument, and how failures are told."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.segment import Segment

from build.identity import identity
from build.interrupts import terminate_is_interrupt
from build.targets.errors import TargetError
from build.trtllm.run_plan import PlanError
from client.errors import ClientError
from deploy.server import TritonError
from deployments.printable import visible
from deployments.spec import DeploymentSpec, SpecError, load_spec
from engine.manifest import EngineError
from engine.request import RequestError
from engine.serving.text import TextCodec
from loadtest.cache import CacheError
from loadtest.prompts import PromptFileError, load, select
from loadtest.rendering import render
from loadtest.run_directory import RunDirectoryError
from loadtest.servers import ServerError
from loadtest.settings import Deployment
from loadtest.sweep import SweepError
from planner.bench.peers.process import PeerError
from planner.bench.peers.summary import SummaryError
from speculators.data.errors import DataError
from speculators.formats.errors import CheckpointError
from speculators.training.errors import TrainingError


class _Terminal(Console):
    """A console that takes orders from this program alone: what it prints, a file or model may have written."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


# Tables keep their columns in a pipe or a log file, where no terminal gives a width.
console = _Terminal(highlight=False, width=None if sys.stdout.isatty() else 120)
errors = _Terminal(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="Deployment spec, a YAML file.")]
HostOption = Annotated[
    str | None, typer.Option("--host", help="Address of the server, instead of the spec's serving.host.")
]

_EXPECTED = (
    *(SpecError, TargetError, EngineError, PlanError, TritonError, ClientError),
    *(PromptFileError, RunDirectoryError, SweepError, PeerError, SummaryError, OSError),
    *(CheckpointError, DataError, TrainingError, RequestError, ServerError, CacheError),
)


@contextmanager
def told() -> Iterator[None]:
    """Tell expected failures in a line and leave with status 2; Ctrl-C, or being asked to terminate, with 130."""
    try:
        with terminate_is_interrupt():
            yield
    except _EXPECTED as error:
        errors.print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        errors.print("stopped")
        raise SystemExit(130) from None


def read_spec(path: Path, host: str | None = None) -> DeploymentSpec:
    """The spec, on another address if one is given; exit status 2 with what is wrong in it."""
    spec = load_spec(path)
    if host is None:
        return spec
    return spec.model_copy(update={"serving": spec.serving.model_copy(update={"host": host})})


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


def who_is(spec: DeploymentSpec) -> Deployment:
    """Who has to answer when this deployment is asked."""
    found = identity(spec)
    return Deployment(name=found.deployment, spec=found.spec, weights=found.weights)


def commit() -> str | None:
    """The checked-out commit, if this is a checkout."""
    root = Path(__file__).resolve().parents[1]
    found = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def tokenized_prompts(
    spec: DeploymentSpec, path: Path, count: int, max_tokens: int
) -> dict[tuple[str, str], tuple[int, ...]]:
    """Token ids by category and id of so many prompts, in the model's chat template, cut so that the answer fits."""
    most = spec.embedded.max_sequence_length - max_tokens
    if most < 1:
        raise SpecError(
            f"--max-tokens {max_tokens} leaves no room for a prompt: engine.max_sequence_length is "
            f"{spec.embedded.max_sequence_length}"
        )
    codec = TextCodec(spec.target.model)
    prompts = load(path)
    chosen = render(select(prompts, min(count, len(prompts))), spec.target.model)
    return {(prompt.category, prompt.id): tuple(codec.encode(prompt.text)[-most:]) for prompt in chosen}
