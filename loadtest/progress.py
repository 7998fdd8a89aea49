"""Shows a sweep's progress: in a terminal one bar over all its requests, elsewhere a line for each cell that ends."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from loadtest.plan import plan_cells
from loadtest.settings import SweepSettings
from loadtest.sweep import News


class Progress:
    """A callable for :func:`loadtest.sweep.run_sweep`'s `on_news`.

    with Progress(settings, Console(stderr=True)) as progress:
        run_sweep(settings, path, progress)
    """

    def __init__(self, settings: SweepSettings, console: Console) -> None:
        cells = plan_cells(settings)
        self._requests_before = {
            cell.name: sum(each.requests for each in cells[: cell.number]) for cell in cells
        }
        self._cells = len(cells)
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("requests"),
            TimeElapsedColumn(),
            console=console,
        )
        self._bar = self._bars.add_task("asking who serves", total=sum(cell.requests for cell in cells))
        self._warned: set[str] = set()
        self._begun, self._measured = time.monotonic(), ""

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()
        elif error is None:
            self._ended()

    def __call__(self, news: News) -> None:
        """Take notice of one piece of news."""
        if news["event"] == "warning" and news["text"] not in self._warned:
            self._warned.add(news["text"])
            self._console.print(f"[yellow]warning[/]: {news['text']}", highlight=False)
        elif news["event"] == "cell":
            description = f"cell {news['number'] + 1} of {self._cells}: {news['cell'].split('-', 1)[1]}"
            self._ended()
            self._measured = description
            self._bars.update(
                self._bar, description=description, completed=self._requests_before[news["cell"]]
            )
        elif news["event"] == "reading":
            read = f"reading its prompts, {news['done']} of {news['of']}"
            self._bars.update(self._bar, description=f"{news['cell'].split('-', 1)[1]}: {read}")
        elif news["event"] == "draining":
            waits = "waiting for the server to come to rest"
            self._bars.update(self._bar, description=f"{news['cell'].split('-', 1)[1]}: {waits}")
        elif news["event"] == "request":
            self._bars.update(self._bar, completed=self._requests_before[news["cell"]] + news["done"])

    def _ended(self) -> None:
        """The cell that was measured has ended; a terminal has seen it."""
        if self._measured and not self._console.is_terminal:
            seconds = time.monotonic() - self._begun
            self._console.print(
                f"{self._measured}, finished after {seconds:.0f} s",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        self._measured = ""
