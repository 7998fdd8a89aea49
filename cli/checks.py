"""`drafthouse plan --check`: what was predicted, beside what a load test measured."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cli.common import console, for_programs, say
from loadtest.measures import MeasuredCell, cells_of, measured_requests, pooled_rate
from loadtest.plan import load_points
from loadtest.records import RequestRecord
from loadtest.run_directory import RunDirectory, RunDirectoryError
from planner.plan.check import NEAR, Checked, Measured, check, verdict
from planner.plan.choose import Option
from planner.plan.predict import Traffic
from planner.plan.profiles import Profile
from planner.plan.words import named


def measured_in(directory: Path) -> list[Measured]:
    """The closed loads of a sweep, arm by arm, that ended with answers.

    Raises:
        RunDirectoryError, RecordError: the directory is not a sweep, a record is unreadable, or none is there.
    """
    run = RunDirectory(directory)
    settings = run.read_settings()
    named = {server.arm: server.deployment.name for server in run.read_servers() if server.deployment}
    cells = [MeasuredCell.of(cell, records) for cell, records in run.finished()]
    found = []
    for load, arm in itertools.product(load_points(settings), settings.arms):
        measured = cells_of(cells, arm.name, load.label)
        traffic, rate = traffic_of(load.level, measured), pooled_rate(measured)
        if load.kind == "closed" and traffic and rate:
            deployment = named.get(arm.name)
            found.append(Measured(load.label, arm.name, deployment, arm.num_draft_tokens, traffic, rate))
    if not found:
        raise RunDirectoryError(
            f"{directory} holds no answers to closed loads whose tokens the server counted, which are what predictions "
            "are held against"
        )
    return found


def tell_checked(profiles: Sequence[Profile], known: Sequence[Option], measured: Sequence[Measured]) -> None:
    """A line for each cell, and what they come to.

    Raises:
        ProfileError: no cell has a prediction.
    """
    cells = check(profiles, known, measured)
    found = verdict(cells)
    console.print(checked_table(cells))
    for reason in dict.fromkeys(cell.reason for cell in cells if cell.reason):
        say(f"left out: {reason}")
    say(
        f"{found.cells} cells: median error {found.median_error:.1%}, {found.near:.0%} within {NEAR:.0%}, "
        f"{found.inside:.0%} inside their interval"
    )
    say(
        f"the machine was {found.pace:.2f} times as fast as the profiles say, in the median; with that known: median "
        f"error {found.paced_error:.1%}, {found.paced_near:.0%} within {NEAR:.0%}"
    )
    if found.gain_error is not None:
        say(f"gains over none at the same load: median error {found.gain_error:.1%}")
    for load, share in found.choices.items():
        arms = [cell for cell in cells if cell.measured.load == load]
        told = sum(cell.predicted is not None for cell in arms)
        of = f", of {told} of its {len(arms)} arms" if told < len(arms) else ""
        say(f"{load}: what a plan would choose gave {share:.2f} of the best that was measured{of}")
    for_programs(json.dumps(_document(cells) | {"verdict": asdict(found)}))


def checked_table(cells: Sequence[Checked]) -> Table:
    """A line for each cell, no wider than 80 columns."""
    table = Table(header_style="bold", title="tokens a second, predicted (90 % interval) and measured")
    for heading in ("load", "context", "arm", "drafts", "predicted", "measured", "off by"):
        words = heading in ("arm", "drafts")
        table.add_column(heading, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for cell in cells:
        table.add_row(*_row(cell))
    return table


def _row(cell: Checked) -> Iterator[str]:
    measured = cell.measured
    yield from (measured.load, f"{measured.traffic.context:.0f}", measured.arm)
    if cell.candidate is None or cell.predicted is None:
        yield from ("", "not told", f"{measured.tokens_per_second:.0f}", "")
        return
    predicted = cell.predicted
    yield named(cell.candidate)
    yield f"{predicted.value:.0f} ({predicted.low:.0f} to {predicted.high:.0f})"
    yield f"{measured.tokens_per_second:.0f}"
    yield f"{cell.error:+.0%}"


def _document(cells: Sequence[Checked]) -> dict[str, Any]:
    return {
        "cells": [
            {
                **asdict(cell.measured),
                "candidate": cell.candidate and cell.candidate.model_dump(),
                "predicted": cell.predicted and cell.predicted.model_dump(),
                "reason": cell.reason,
            }
            for cell in cells
        ]
    }


def traffic_of(users: float, cells: Sequence[MeasuredCell]) -> Traffic | None:
    """Means over the measured requests that were answered; None where the server did not count tokens."""
    known = [
        (record.input_tokens, record.output_tokens, _cached(record))
        for record in measured_requests(cells)
        if record.completed and record.input_tokens and record.output_tokens
    ]
    if not known:
        return None
    prompt, output, cached = np.mean(known, axis=0)
    return Traffic(int(users), float(prompt), float(output), float(cached))


def _cached(record: RequestRecord) -> float:
    """Tokens of the prompt that the server had, as far as it tells: its blocks hold prompt and answer."""
    if not record.blocks or not record.reused_blocks:
        return 0.0
    whole = (record.input_tokens or 0) + (record.output_tokens or 0)
    return record.reused_blocks / record.blocks * whole
