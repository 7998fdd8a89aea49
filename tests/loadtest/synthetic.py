"""Records made up from a simple model of a server, for tests that need a whole sweep but no server.

A target step over a batch of b sequences takes ``20 + 2 b`` ms, and ``1 + 0.1 b`` times as long with drafts.
Each step of a request with drafts yields one token or three in turn. Prefill takes 50 ms.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from loadtest.plan import Cell, Work, Workload, plan_cells
from loadtest.prompts import Prompt, load, select
from loadtest.records import CellRecord, RecordWriter, RequestRecord, ServerTimes
from loadtest.run_directory import RunDirectory
from loadtest.settings import SweepSettings

MS = 1_000_000
EPOCH_NS = 1_800_000_000 * 1_000 * MS

BLANK = RequestRecord(
    cell="002-c1-none",
    arm="none",
    load="c1",
    round=0,
    role="measured",
    index=0,
    prompt_id="1",
    category="chat",
    due_ns=None,
    worker="w",
    sent_ns=EPOCH_NS,
    ended_ns=EPOCH_NS,
    chunk_offsets_ns=(),
    chunk_tokens=(),
    input_tokens=10,
    output_tokens=0,
    draft_tokens=0,
    accepted_tokens=0,
    reused_blocks=None,
    blocks=None,
    finish_reason="length",
    server=None,
    error=None,
    error_message=None,
)


def record(
    offsets_ms: list[float], tokens: list[int], sent_ms: float = 0.0, **fields: object
) -> RequestRecord:
    """A completed request whose chunks came at these offsets, with so many tokens each."""
    sent = EPOCH_NS + round(sent_ms * MS)
    offsets = tuple(round(offset * MS) for offset in offsets_ms)
    made = dataclasses.replace(
        BLANK,
        sent_ns=sent,
        ended_ns=sent + (offsets[-1] if offsets else 0),
        chunk_offsets_ns=offsets,
        chunk_tokens=tuple(tokens),
        output_tokens=sum(tokens),
    )
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def simulate_sweep(
    path: Path, settings: SweepSettings, cells: int | None = None, failing: int = 0, silent: str = ""
) -> RunDirectory:
    """A directory as a sweep leaves it: with the first `cells` cells, and `failing` failures in each.

    The arm or category `silent` has answers of no tokens.
    """
    directory = RunDirectory(path)
    directory.begin(
        settings, {"command": ["drafthouse", "loadtest", "spec.yaml"], "commit": None, "host": {"cores": 2}}
    )
    clock = EPOCH_NS
    for cell in plan_cells(settings)[:cells]:
        directory.prepare_cell(cell)
        records = [_silenced(each, silent) for each in _simulate_cell(cell, settings, clock, failing)]
        with RecordWriter(directory.request_file(cell.name, "0")) as writer:
            for each in records:
                writer.write(each)
        end = max(each.ended_ns for each in records)
        directory.finish_cell(_cell_record(cell, records, clock, end))
        clock = end + 100 * MS
    return directory


def _simulate_cell(cell: Cell, settings: SweepSettings, start_ns: int, failing: int) -> list[RequestRecord]:
    """Users take work from the real :class:`Workload`; the one that is free first goes first."""
    workload = Workload(cell, settings.max_tokens, settings.seed)
    free = dict.fromkeys(range(cell.users), start_ns)
    records: list[RequestRecord] = []
    running: dict[int, RequestRecord] = {}
    while True:
        user = min(free, key=lambda each: free[each])
        if user in running:
            workload.done(running.pop(user).index)
        work = workload.take()
        if work is None and not workload.outstanding:
            return records
        if work is None:
            free[user] = max(free.values()) + 1
            if workload.is_over:
                return records
            continue
        each = _simulate_request(cell, settings, work, free[user], start_ns, failing)
        records.append(each)
        running[user] = each
        free[user] = each.ended_ns + MS // 10


def _simulate_request(
    cell: Cell, settings: SweepSettings, work: Work, free_ns: int, start_ns: int, failing: int
) -> RequestRecord:
    prompt = select(_prompts(settings.prompts), 1, work.prompt)[0]
    due = None if work.due is None else start_ns + round(work.due * 1e9)
    sent = max(free_ns, due or 0)
    batch = cell.users if cell.load.kind == "closed" else 2
    speculative = cell.arm.num_draft_tokens != 0
    drift = 1.0 + 0.02 * cell.round
    step = round((20 + 2 * batch) * MS * drift * (1.0 + 0.1 * batch if speculative else 1.0))
    lengths = _chunks(work.max_tokens, speculative and prompt.category != "translation")
    accepted = sum(lengths) - len(lengths)
    made = dataclasses.replace(
        BLANK,
        cell=cell.name,
        arm=cell.arm.name,
        load=cell.load.label,
        round=cell.round,
        role=work.role,
        index=work.index,
        prompt_id=prompt.id,
        category=prompt.category,
        due_ns=due,
        sent_ns=sent,
        chunk_offsets_ns=tuple(50 * MS + number * step for number in range(len(lengths))),
        ended_ns=sent + 50 * MS + (len(lengths) - 1) * step,
        chunk_tokens=tuple(lengths),
        output_tokens=work.max_tokens,
        draft_tokens=7 * (len(lengths) - 1) if speculative else 0,
        accepted_tokens=accepted,
        server=ServerTimes(5, 5 + MS, 50 * MS, 60 * MS),
    )
    if work.role == "measured" and work.index % max(1, cell.requests) < failing:
        return dataclasses.replace(
            made,
            error="QueueFull",
            error_message="the queue is full (64 requests)",
            chunk_offsets_ns=(),
            chunk_tokens=(),
        )
    return made


def _silenced(made: RequestRecord, silent: str) -> RequestRecord:
    if silent not in (made.arm, made.category):
        return made
    nothing = {"chunk_offsets_ns": (), "chunk_tokens": (), "output_tokens": 0, "finish_reason": "stop"}
    return dataclasses.replace(made, **nothing, draft_tokens=0, accepted_tokens=0)  # type: ignore[arg-type]


@functools.cache
def _prompts(path: Path) -> tuple[Prompt, ...]:
    return load(path)


def _chunks(tokens: int, speculative: bool) -> list[int]:
    lengths = [1]
    while sum(lengths) < tokens:
        wanted = 3 if speculative and len(lengths) % 2 else 1
        lengths.append(min(wanted, tokens - sum(lengths)))
    return lengths


def _cell_record(cell: Cell, records: list[RequestRecord], start_ns: int, end_ns: int) -> CellRecord:
    steps = sum(each.draft_tokens or 0 for each in records) // 7
    drafted = dict.fromkeys(range(1, 8), steps) if steps else {}
    return CellRecord(
        name=cell.name,
        arm=cell.arm.name,
        load=cell.load.label,
        round=cell.round,
        opened_ns=start_ns,
        closed_ns=end_ns,
        requests=len(records),
        drained=True,
        drafted_by_position=drafted,
        accepted_by_position={position: round(steps * 0.6**position) for position in drafted},
    )
