"""From raw records to a report: every figure, computed afterwards with numpy.

Nothing here looks at Locust's statistics, whose percentiles come from rounded buckets. Figures of several
rounds are pooled before dividing (all tokens / all seconds), so a short round weighs as much as it lasted.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from loadtest.comparison import by_category, speed_ups
from loadtest.findings import doubts
from loadtest.measures import (
    MeasuredCell,
    Measures,
    acceptance_length,
    acceptance_rate,
    by_position,
    cells_of,
    found_share,
    measure,
    measured_requests,
    output_tokens,
    pooled_rate,
)
from loadtest.plan import LoadPoint, load_points, plan_cells
from loadtest.records import RequestRecord
from loadtest.run_directory import RunDirectory
from loadtest.schema import ArmReport, Distribution, FailureReport, PointReport, Report
from loadtest.servers import CACHE_WORDS, Server
from loadtest.settings import Arm, Slo

_LATE_NS = 50_000_000


def summarise(directory: RunDirectory) -> Report:
    """The report of a sweep, finished or not.

    Raises:
        RunDirectoryError, RecordError: the directory is not a sweep, or a record is unreadable.
    """
    settings = directory.read_settings()
    cells = [MeasuredCell.of(cell, records) for cell, records in directory.finished()]
    planned = sum(not cell.is_warmup for cell in plan_cells(settings))
    loads = load_points(settings)
    lowest = min((load for load in loads if load.kind == "closed"), default=None)
    servers = directory.read_servers()
    speedups = speed_ups(settings, cells)
    return Report(
        digest=settings.digest(),
        complete=len(cells) == planned,
        cells_finished=len(cells),
        cells_planned=planned,
        started=_time(min((cell.cell.opened_ns for cell in cells), default=None)),
        ended=_time(max((cell.cell.closed_ns for cell in cells), default=None)),
        baseline=settings.baseline.name,
        lowest_load=lowest.label if lowest else None,
        arms=[_arm(arm, servers, cells) for arm in settings.arms],
        points=[
            _point(arm, load, settings.slo, found)
            for load in loads
            for arm in settings.arms
            if (found := cells_of(cells, arm.name, load.label))
        ],
        speedups=speedups,
        categories=by_category(settings, cells, lowest),
        positions=[
            position
            for arm in settings.arms
            for position in by_position(arm.name, [cell.cell for cell in cells_of(cells, arm.name)])
        ],
        failures=_failures(cells),
        doubts=doubts(settings, servers, cells, speedups),
        settings=settings.model_dump(mode="json"),
        provenance=directory.read_provenance(),
    )


def _point(arm: Arm, load: LoadPoint, slo: Slo, cells: Sequence[MeasuredCell]) -> PointReport:
    records = measured_requests(cells)
    completed = [record for record in records if record.completed]
    measures = [measure(record) for record in completed]
    token_rate = pooled_rate(cells)
    mean_tokens = _mean([count for record in completed if (count := output_tokens(record)) is not None])
    request_rate = token_rate / mean_tokens if token_rate and mean_tokens else None
    share = sum(each.meets(slo) for each in measures) / len(records) if slo.limits() and records else None
    return PointReport(
        arm=arm.name,
        load=load.label,
        kind=load.kind,
        level=load.level,
        rounds=len(cells),
        requests=len(records),
        failures=sum(not record.completed for record in records),
        late_arrivals=sum(_is_late(record) for record in records),
        output_tokens_per_second=token_rate,
        output_tokens_per_second_by_round=[cell.rate for cell in cells if cell.rate is not None],
        requests_per_second=request_rate,
        output_tokens_mean=mean_tokens,
        goodput_share=share,
        goodput=None if share is None or request_rate is None else share * request_rate,
        acceptance_length=acceptance_length(completed),
        acceptance_rate=acceptance_rate(completed),
        cache_hits=found_share(completed),
        **distributions(measures),
    )


def distributions(measures: Sequence[Measures]) -> dict[str, Distribution | None]:
    """Every kind of latency, under its name in :class:`loadtest.schema.PointReport`."""
    found: dict[str, Distribution | None] = {
        name: _distribution([value for each in measures if (value := getattr(each, name)) is not None])
        for name in ("ttft", "itl", "tpot", "latency", "queue")
    }
    found["icl"] = _distribution([gap for each in measures for gap in each.icl])
    return found


def _distribution(values: Sequence[float]) -> Distribution | None:
    if not values:
        return None
    p50, p90, p99 = (float(value) for value in np.percentile(values, [50, 90, 99]))
    return Distribution(count=len(values), mean=float(np.mean(values)), p50=p50, p90=p90, p99=p99)


def _arm(arm: Arm, servers: Sequence[Server], cells: Sequence[MeasuredCell]) -> ArmReport:
    completed = [record for record in measured_requests(cells_of(cells, arm.name)) if record.completed]
    server = next((each for each in servers if each.arm == arm.name), None)
    deployment = server.deployment if server else None
    return ArmReport(
        arm=arm.name,
        num_draft_tokens=arm.num_draft_tokens,
        host=server.host if server else None,
        deployment=deployment.name if deployment else None,
        spec=deployment.spec if deployment else None,
        weights=deployment.weights if deployment else None,
        cache=CACHE_WORDS[server.cache] if server else None,
        acceptance_length=acceptance_length(completed),
        acceptance_rate=acceptance_rate(completed),
    )


def _failures(cells: Iterable[MeasuredCell]) -> list[FailureReport]:
    failed = [record for cell in cells for record in cell.records if record.failed]
    counts = Counter((record.arm, record.load, record.error or "") for record in failed)
    examples = {
        (record.arm, record.load, record.error or ""): record.error_message or "" for record in failed
    }
    return [
        FailureReport(arm=arm, load=load, error=error, count=count, example=examples[arm, load, error])
        for (arm, load, error), count in counts.items()
    ]


def _is_late(record: RequestRecord) -> bool:
    return record.due_ns is not None and record.sent_ns - record.due_ns > _LATE_NS


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _time(epoch_ns: int | None) -> str | None:
    if epoch_ns is None:
        return None
    moment = datetime.datetime.fromtimestamp(epoch_ns / 1e9, tz=datetime.timezone.utc)
    return moment.isoformat(timespec="seconds")
