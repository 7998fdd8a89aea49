"""What the commands share: the console, the spec argument, and how failures are told."""

import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.segment import Segment
from rich.text import Text

from build.identity import identity
from build.interrupts import terminate_is_interrupt
from client.errors import ClientError
from deploy.server import TritonError
from deployments.errors import DrafthouseError
from deployments.printable import visible
from deployments.spec import DeploymentSpec, SpecError, load_spec
from deployments.speculation import PlannedSpeculation
from engine.serving.text import TextCodec
from loadtest.prompts import load, render, select
from loadtest.settings import Deployment


class _Terminal(Console):
    """A console that takes orders from this program alone: what it prints, a file or model may have written."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


# Tables keep their columns in a pipe or a log file, where no terminal gives a width.
console = _Terminal(highlight=False, width=None if sys.stdout.isatty() else 120)
errors = _Terminal(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)
_SECONDS_BETWEEN_LINES = 10.0  # of progress, where it is no bar

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="Deployment spec, a YAML file.")]
HostOption = Annotated[
    str | None, typer.Option("--host", help="Address of the server, instead of the spec's serving.host.")
]

_EXPECTED = (DrafthouseError, ClientError, TritonError, OSError)


@dataclass
class Stop:
    """What Ctrl-C says: what was kept, and how to go on."""

    kept: str | Callable[[], str] = "nothing is half-written; the same command begins again"

    def __str__(self) -> str:
        return self.kept if isinstance(self.kept, str) else self.kept()


@contextmanager
def told() -> Iterator[Stop]:
    """Tell expected failures in a line and leave with status 2; Ctrl-C, or being asked to terminate, with 130."""
    stop = Stop()
    try:
        with terminate_is_interrupt():
            yield stop
    except _EXPECTED as error:
        errors.print("[bold red]error:[/] " + _escaped(folded(str(error), first=7)), soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        errors.print(folded(f"stopped: {stop}"), markup=False, soft_wrap=True)
        raise SystemExit(130) from None


def say(line: str) -> None:
    """Print a line of text; one that is longer than the terminal stays one line for whoever copies it."""
    console.print(line, markup=False, soft_wrap=True)


def folded(text: str, *, indent: int = 0, first: int | None = None) -> str:
    """Text for a terminal: lines end between words, and no path is broken.

    Args:
        text: of one line or several.
        indent: columns before every line.
        first: columns before the first line instead, which are taken and not written.
    """
    width = console.width if sys.stdout.isatty() else errors.width
    lines = [
        textwrap.fill(
            line,
            max(width, 40),
            initial_indent=" " * (first if first is not None and number == 0 else indent),
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for number, line in enumerate(text.splitlines())
    ]
    return "\n".join(lines)[first or 0 :]


def for_programs(document: str) -> None:
    """Print one JSON document as the last line, where standard output is no terminal."""
    if not sys.stdout.isatty():
        print(document, flush=True)


def read_spec(path: Path, host: str | None = None) -> DeploymentSpec:
    """The spec, on another address if one is given; exit status 2 with what is wrong in it."""
    spec = load_spec(path)
    if host is None:
        return spec
    return spec.model_copy(update={"serving": spec.serving.model_copy(update={"host": host})})


def refuse_plan(spec: DeploymentSpec, what: str) -> None:
    """Raise SpecError if the spec serves a plan where a deployment with a method is meant."""
    if isinstance(spec.speculation, PlannedSpeculation):
        raise SpecError(
            f"{spec.name} serves a plan, {spec.speculation.plan}; {what} the deployments that it is made from"
        )


@contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """Show what goes on; the function it gives takes a message and the share done (None: unknown).

    A bar with the time that is left: on standard output, so that what is printed goes above it, or on standard error
    where the output goes elsewhere. Where neither is a terminal, a line every ten seconds.
    """
    shown = console if console.is_terminal else errors
    if not shown.is_terminal:
        yield _lines()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=12), _Clock())
    with Progress(*columns, console=shown, transient=True, redirect_stdout=shown is console) as bar:
        task = bar.add_task("", total=None, left="")
        left = TimeLeft()

        def show(message: str, share: float | None = None) -> None:
            bar.update(
                task,
                description=_escaped(message),
                total=None if share is None else 1.0,
                completed=share or 0,
                left=left(share),
            )

        yield show


class _Clock(ProgressColumn):
    """How long it takes yet, or where that is not known how long it has taken."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["left"] or f"{task.elapsed or 0:.0f} s")


def _lines() -> Callable[[str, float | None], None]:
    left, last = TimeLeft(), time.monotonic()

    def show(message: str, share: float | None = None) -> None:
        nonlocal last
        remaining, now = left(share), time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            errors.print(" ".join(filter(None, (message, remaining))), markup=False, soft_wrap=True)

    return show


class TimeLeft:
    """Says how long something takes yet, from the shares done of it; a share that falls begins something new."""

    def __init__(self) -> None:
        self._begun: tuple[float, float] | None = None
        self._last = 0.0

    def __call__(self, share: float | None) -> str:
        """The text; empty while it cannot be told."""
        now = time.monotonic()
        if share is None:
            self._begun = None
            return ""
        if self._begun is None or share < self._last:
            self._begun = now, share
        self._last = share
        since, first = self._begun
        if share - first <= 0 or now - since < 2:
            return ""
        seconds = (now - since) * (1 - share) / (share - first)
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"


def who_is(spec: DeploymentSpec) -> Deployment:
    """Who has to answer when this deployment is asked."""
    found = identity(spec)
    return Deployment(name=found.deployment, spec=found.spec, weights=found.weights)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


EVERY = sys.maxsize
"""Of prompts: all there are."""


def tokenized_prompts(
    spec: DeploymentSpec, path: Path, count: int, max_tokens: int
) -> dict[tuple[str, str], tuple[int, ...]]:
    """Token ids by category and id of `count` prompts, in the model's chat template, cut so that the answer fits."""
    most = _room_for_prompts(spec.embedded.max_sequence_length, max_tokens)
    codec = TextCodec(spec.target.model)
    prompts = load(path)
    chosen = render(select(prompts, min(count, len(prompts))), spec.target.model)
    return {(prompt.category, prompt.id): tuple(codec.encode(prompt.text)[-most:]) for prompt in chosen}


def text_prompts(spec: DeploymentSpec, path: Path, count: int, max_tokens: int) -> dict[str, str]:
    """Texts by category and id of `count` prompts, in the model's chat template; longer ones than fit are left out.

    Raises:
        SpecError: none fits.
    """
    most = _room_for_prompts(spec.engine.max_sequence_length, max_tokens)
    codec = TextCodec(spec.target.model)
    rendered = render(load(path), spec.target.model)
    fitting = [prompt for prompt in rendered if len(codec.encode(prompt.text)) <= most]
    if not fitting:
        raise SpecError(f"no prompt of {path} fits into {most} tokens, beside answers of {max_tokens}")
    return {f"{each.category}/{each.id}": each.text for each in select(fitting, min(count, len(fitting)))}


def _room_for_prompts(max_sequence_length: int, max_tokens: int) -> int:
    if max_sequence_length - max_tokens < 1:
        raise SpecError(
            f"answers of {max_tokens} tokens leave no room for a prompt: engine.max_sequence_length is "
            f"{max_sequence_length}"
        )
    return max_sequence_length - max_tokens
