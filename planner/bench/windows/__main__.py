"""Acceptance of drafts on a part of the target's own cache, by rows read, context and way of choosing them."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from deployments.errors import DrafthouseError
from deployments.files.hashes import file_sha256
from deployments.files.writing import write_json
from deployments.spec import DeploymentSpec, SpecError, load_spec
from deployments.speculation import WindowedSelfDrafting
from engine.fingerprint import Fingerprint
from engine.serving.text import TextCodec
from planner.bench.windows.documents import chosen, read_documents
from planner.bench.windows.measure import Grid, measure_windows, section_of
from planner.bench.windows.records import RESULT, Records, Timings
from planner.bench.windows.speed import Batches, Speed, check_batches, time_windows
from planner.bench.windows.table import Cell, cells_of, heading, legend, speed_table, window_table
from speculators.windowed import Choice

_CONTEXTS, _WINDOWS = (2000, 4000, 8000), (128, 256, 512, 1024, 2048)
_DIGITS = 12  # of hashes
_WIDTH = 100  # where no terminal gives one
_SECONDS_BETWEEN_LINES = 10.0


def main(words: Sequence[str]) -> int:
    """0: measured; 1: an answer is not plain decoding's; 2: it cannot be done; 130: stopped."""
    given = _parser().parse_args(words)
    directory: Path | None = given.output
    try:
        spec = load_spec(given.spec)
        directory = directory or Path("runs/windows") / spec.name
        return _run(spec, given, directory, list(words))
    except (DrafthouseError, OSError) as error:
        print(f"planner.bench.windows: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = f": {directory} keeps what was accepted, and the same command goes on; times are taken anew"
        print(f"stopped{kept if directory else ''}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m planner.bench.windows", description=__doc__)
    parser.add_argument("spec", type=Path, metavar="SPEC", help="deployment of method: windowed, built")
    parser.add_argument(
        "--documents", type=Path, required=True, metavar="FILE", help='JSONL of {"id": ..., "text": ...}'
    )
    parser.add_argument(
        "--context", type=_positive, action="append", metavar="N", help="tokens of the prompt; repeatable"
    )
    parser.add_argument(
        "--window", type=_positive, action="append", metavar="N", help="rows that drafts read; repeatable"
    )
    parser.add_argument(
        "--choice", choices=get_args(Choice), action="append", help="which rows; repeatable; all by default"
    )
    parser.add_argument("--count", type=_positive, default=8, metavar="N", help="documents of each context")
    parser.add_argument("--max-tokens", type=_positive, default=64, metavar="N", help="of each answer")
    parser.add_argument(
        "--batch", type=_positive, action="append", metavar="N", help="time so many at once, too; repeatable"
    )
    parser.add_argument(
        "--lookup",
        type=_whole,
        action="append",
        metavar="N",
        help="timed with so many guessed tokens; repeatable",
    )
    parser.add_argument("--rounds", type=_positive, default=3, metavar="N", help="of each that is timed")
    parser.add_argument("--output", type=Path, metavar="DIR", help="records and result")
    return parser


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _whole(word: str) -> int:
    number = int(word)
    if number < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def _run(spec: DeploymentSpec, given: argparse.Namespace, directory: Path, words: Sequence[str]) -> int:
    choices: list[Choice] = list(dict.fromkeys(given.choice or get_args(Choice)))
    contexts = sorted(set(given.context or _CONTEXTS))
    grid = Grid(contexts, sorted(set(given.window or _WINDOWS)), choices, given.max_tokens)
    section = section_of(spec, grid)
    documents = read_documents(given.documents, TextCodec(spec.target.model).encode)
    by_context = chosen(documents, contexts, given.count)
    batches = Batches(sorted(set(given.batch or ())), sorted(set(given.lookup or (0,))), given.rounds)
    check_batches(by_context, grid, batches)
    if given.lookup and not batches.sizes:
        raise SpecError("--lookup is timed: say with --batch how many at once")
    fingerprint = Fingerprint.of(spec)
    records = Records(directory, _settings(spec, section, grid, fingerprint, given.documents))
    keys = list(grid.keys(by_context))
    if wanted := {key for key in keys if key not in records.found}:
        with _progress() as show:
            measure_windows(spec, by_context, grid, wanted, records.add, show)
    speeds: list[Speed] = []
    if batches.sizes:
        with _progress() as show:
            speeds = time_windows(spec, by_context, grid, batches, Timings(directory).add, show)
    cells = cells_of([records.found[key] for key in keys], section.draft_length)
    result: dict[str, Any] = {
        "deployment": spec.name,
        "arguments": list(words),
        "speculation": section.model_dump(mode="json", exclude_none=True),
        "documents": {context: [each.id for each in group] for context, group in by_context.items()},
        "fingerprint": fingerprint.model_dump(),
        "host": platform.platform(),
        "cells": [cell.as_dict() for cell in cells],
        "speeds": [speed.as_dict() for speed in speeds],
    }
    write_json(directory / RESULT, result, indent=1)
    _show(cells, speeds, directory)
    if not sys.stdout.isatty():
        print(json.dumps(result), flush=True)
    right = [cell.equal == cell.documents for cell in cells] + [speed.equal for speed in speeds]
    return 0 if all(right) else 1


def _settings(
    spec: DeploymentSpec, section: WindowedSelfDrafting, grid: Grid, fingerprint: Fingerprint, documents: Path
) -> dict[str, Any]:
    """Without which figures cannot stand beside each other."""
    return {
        "engine": spec.engine_directory.name,
        "attention": fingerprint.attention,
        "draft_length": section.draft_length,
        "sink_tokens": section.sink_tokens,
        "max_tokens": grid.max_tokens,
        "documents": file_sha256(documents)[:_DIGITS],
    }


def _show(cells: Sequence[Cell], speeds: Sequence[Speed], directory: Path) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    for context in dict.fromkeys(cell.context for cell in cells):
        behind = [cell for cell in cells if cell.context == context]
        console.print(heading(behind))
        console.print(window_table(behind))
    console.print(legend(cells), markup=False)
    for context in dict.fromkeys(speed.context for speed in speeds):
        console.print(f"{context} tokens of context, timed in turns")
        console.print(speed_table([speed for speed in speeds if speed.context == context]))
    console.print(f"records and figures: {directory}", markup=False, soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[str, float | None], None]]:
    """Say on standard error what goes on: in one line of a terminal, else in a line every ten seconds."""
    console, started, last = Console(stderr=True, highlight=False), time.monotonic(), time.monotonic()
    with console.status("") as status:

        def show(line: str, share: float | None) -> None:
            nonlocal last
            now = time.monotonic()
            told = f"{now - started:.0f} s{'' if share is None else f', {share:.0%}'}: {line}"
            if console.is_terminal:
                status.update(told)
            elif now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                print(told, file=sys.stderr, flush=True)

        yield show


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
