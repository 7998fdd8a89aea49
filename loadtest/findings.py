"""What a report comes to, and what speaks against the figures of a sweep, in sentences for people."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from loadtest.measures import MeasuredCell, cells_of, found_share, measure
from loadtest.plan import LoadPoint, load_points
from loadtest.records import RequestRecord
from loadtest.schema import ArmReport, Report, SpeedUp
from loadtest.servers import Server, silent
from loadtest.settings import SweepSettings

_DISAGREE = 1.25  # greatest speed-up of a round / least
_TTFT_FACTOR, _TTFT_LEAST_MS = 2.0, 50.0
_FOUND_APART = 0.1  # least difference between the shares of blocks that two rounds found
_FOUND_IN_COLD = 0.05  # share of blocks; what templates have in common is less than one block, as a rule


def findings(report: Report) -> list[str]:
    """A few sentences for people: what is shown, at which loads it pays, and whether requests or cells are missing."""
    sentences = [
        sentence
        for arm in report.arms
        if arm.arm != report.baseline
        for sentence in (
            *_arm(arm, [each for each in report.speedups if each.arm == arm.arm], report),
            *_extreme(arm),
        )
    ]
    requests, failed = (
        sum(getattr(point, name) for point in report.points) for name in ("requests", "failures")
    )
    if failed:
        sentences.append(f"{failed} of {requests} measured requests failed; see the list of failures.")
    if not report.complete:
        sentences.append(
            f"The sweep was interrupted with {report.cells_finished} of {report.cells_planned} cells "
            "finished. Run the same command again to go on."
        )
    return sentences


def _arm(arm: ArmReport, speedups: Sequence[SpeedUp], report: Report) -> list[str]:
    closed = sorted(speedups, key=lambda each: each.level)
    if not closed:
        return []
    first, name = closed[0], arm.arm
    if first.verdict == "not shown":
        sentences = [
            f"At {_at([first])} no difference is shown between {name} and {report.baseline}{_span(first)}."
        ]
    else:
        sentences = [
            f"At {_at([first])}, {name} gives {first.value:.2f} times the output tokens per second of "
            f"{report.baseline}{_span(first)}."
        ]
    if len(closed) > 1:
        sentences.append(_range(name, closed))
    return sentences


def _span(speedup: SpeedUp) -> str:
    if speedup.low is None or speedup.high is None:
        return f" ({speedup.value:.2f} in one round, and nothing to tell it from drift)"
    return f" (95 % interval {speedup.low:.2f} to {speedup.high:.2f})"


def _extreme(arm: ArmReport) -> list[str]:
    """Acceptance at an end of its range, which a working drafter does not reach over a whole sweep.

    Seen with EAGLE-3 heads whose layers or vocabulary were not the target's (TensorRT-LLM#11125).
    """
    if arm.acceptance_rate == 0:
        return [
            f"{arm.arm} had not one drafted token accepted (acceptance length exactly 1). The drafter is broken: "
            "another vocabulary, other layers, or weights that were never loaded. Or the server does not count: "
            "TensorRT-LLM's LLM API reports zeros before pull request #17082."
        ]
    if arm.acceptance_rate == 1:
        return [
            f"{arm.arm} had every drafted token accepted. Read some of its output: either it repeats itself, or "
            "acceptance is forced (TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS)."
        ]
    return []


def _range(arm: str, closed: Sequence[SpeedUp]) -> str:
    """At which concurrencies an arm is faster for certain, and at which it is slower."""
    by_verdict = {
        verdict: [each for each in closed if each.verdict == verdict]
        for verdict in ("faster", "slower", "not shown")
    }
    unknown = by_verdict.pop("not shown")
    if len(unknown) == len(closed):
        return f"No difference between {arm} and the baseline is shown at {_at(unknown)}."
    parts = [f"{verdict} at {_at(loads)}" for verdict, loads in by_verdict.items() if loads]
    rest = f"; no difference is shown at {_at(unknown)}" if unknown else ""
    return f"{arm} is {' and '.join(parts)}{rest}."


def _at(speedups: Sequence[SpeedUp]) -> str:
    return _all_users([each.level for each in speedups])


def doubts(
    settings: SweepSettings,
    servers: Sequence[Server],
    cells: Sequence[MeasuredCell],
    speedups: Sequence[SpeedUp],
) -> list[str]:
    """Sentences for people; empty if nothing was found."""
    if not cells:
        return []
    return [
        *_servers(servers),
        *_rounds(settings, speedups),
        *_first_tokens(settings, cells),
        *_repeated_prompts(settings, cells),
        *_cache(settings, servers, cells),
        *_undrained(cells),
    ]


def _servers(servers: Sequence[Server]) -> Iterator[str]:
    for host in silent(servers):
        yield (
            f"{host} does not say which deployment it serves: a repository of another make, or of an earlier version "
            "(drafthouse build makes it anew)."
        )


def _rounds(settings: SweepSettings, speedups: Sequence[SpeedUp]) -> Iterator[str]:
    if speedups and settings.rounds == 1:
        yield (
            "Every cell was measured once, so nothing tells a difference between the arms from the drift of the "
            "machine. Give --rounds 3."
        )
    for arm in dict.fromkeys(each.arm for each in speedups):
        apart = [each for each in speedups if each.arm == arm and _disagreement(each) > _DISAGREE]
        if apart:
            worst = max(apart, key=_disagreement)
            most = f" most at {_at([worst])}," if len(apart) > 1 else ""
            yield (
                f"The rounds disagree about {arm} at {_at(apart)}:{most} "
                f"{min(worst.by_round):.2f} times the baseline in one, {max(worst.by_round):.2f} in another. "
                "Something else changed between them: the machine, or what its caches held."
            )


def _disagreement(speedup: SpeedUp) -> float:
    return max(speedup.by_round) / min(speedup.by_round)


def _first_tokens(settings: SweepSettings, cells: Sequence[MeasuredCell]) -> Iterator[str]:
    """Prompts that one round found in a cache and another did not, unless the server tells that it was not so."""
    for load, arm in itertools.product(load_points(settings), settings.arms):
        rounds = cells_of(cells, arm.name, load.label)
        medians = [median for cell in rounds if (median := _ttft(cell)) is not None]
        shares = [found_share(cell.measured) for cell in rounds]
        known = [share for share in shares if share is not None]
        if len(medians) < 2 or (len(known) == len(shares) and max(known) - min(known) < _FOUND_APART):
            continue
        if max(medians) > max(_TTFT_FACTOR * min(medians), min(medians) + _TTFT_LEAST_MS):
            yield (
                f"Time to first token of {arm.name} at {_place(load)} was {max(medians):,.0f} ms in one round and "
                f"{min(medians):,.0f} ms in another (medians): the prompts of one may have been found in a cache."
            )


def _ttft(cell: MeasuredCell) -> float | None:
    measures = [measure(record) for record in cell.measured if record.completed]
    found = [each.ttft for each in measures if each.ttft is not None]
    return float(np.median(found)) if found else None


def _repeated_prompts(settings: SweepSettings, cells: Sequence[MeasuredCell]) -> Iterator[str]:
    """Prompts that come again at one load in one arm: their requests are no new evidence."""
    for load in load_points(settings):
        cells_here = cells_of(cells, settings.baseline.name, load.label)
        sent = [record.prompt_id for cell in cells_here for record in cell.measured]
        if len(sent) > len(set(sent)):
            unfound = (
                ", though no request finds an earlier one's in a cache" if settings.cache == "cold" else ""
            )
            yield (
                f"Prompts repeat: the {len(sent)} measured requests of an arm at {_place(load)} come from "
                f"{len(set(sent))} prompts, so they vary less than as many prompts would{unfound}."
            )
            return


def _cache(
    settings: SweepSettings, servers: Sequence[Server], cells: Sequence[MeasuredCell]
) -> Iterator[str]:
    """Whether the baseline found in the cache what it was to find, as far as its server tells.

    Other arms are left out: where `tensorrt_llm_bls` drafts, each of its calls finds the last one's rows.
    """
    records = [record for cell in cells_of(cells, settings.baseline.name) for record in cell.measured]
    found, name = found_share(records), settings.baseline.name
    if found is None:
        return
    if settings.cache == "cold" and found > _FOUND_IN_COLD:
        state = next((server.cache for server in servers), "off")
        yield (
            f"The cache was not cold: {100 * found:.0f} % of the KV cache blocks of {name} were found filled (state: "
            f"{state})."
        )
    share = _share_of_prompts(records)
    if settings.cache == "warm" and found < share / 2:
        yield (
            f"The cache was not warm: {100 * found:.0f} % of the KV cache blocks of {name} were found filled, where "
            f"about {100 * share:.0f} % are those of prompts. It has no room for all prompts of a cell."
        )


def _share_of_prompts(records: Sequence[RequestRecord]) -> float:
    """Share of the requests' blocks that are whole blocks of their prompts, about."""
    told = [(record.blocks or 0, record.input_tokens or 0, record.output_tokens or 0) for record in records]
    whole = [blocks * read / (read + written) - 1 for blocks, read, written in told if blocks and read]
    return max(0.0, sum(whole)) / sum(blocks for blocks, read, _ in told if blocks and read) if whole else 0.0


def _undrained(cells: Sequence[MeasuredCell]) -> Iterator[str]:
    busy = sum(not cell.cell.drained for cell in cells)
    if busy:
        yield (
            f"After {busy} cell{'s' * (busy > 1)} the server still had requests running, which may have slowed the "
            "cells that followed."
        )


def _place(load: LoadPoint) -> str:
    return _all_users([load.level]) if load.kind == "closed" else f"{load.level:g} arrivals/s"


def _all_users(levels: Sequence[float]) -> str:
    """Concurrencies in a sentence: "1 user", "1, 2 and 4 users"."""
    *most, last = (f"{level:g}" for level in levels)
    numbers = f"{', '.join(most)} and {last}" if most else last
    return f"{numbers} user{'' if numbers == '1' else 's'}"
