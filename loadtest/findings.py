"""What a report comes to, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.schema import ArmReport, Report, SpeedUp
from loadtest.words import all_users


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
    return all_users([each.level for each in speedups])
