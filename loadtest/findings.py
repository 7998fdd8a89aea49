"""What a report comes to, in sentences and in one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from loadtest.schema import ArmReport, Report, SpeedUp


def findings(report: Report) -> list[str]:
    """A few sentences for people: does it pay, up to which load, and is anything wrong with the numbers."""
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
    if report.undrained_cells:
        sentences.append(
            f"After {len(report.undrained_cells)} cells the server still had requests running, "
            "which may have slowed the cells that followed."
        )
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
    first = closed[0]
    sentences = [
        f"At {_users(first)}, {arm.arm} gives {first.value:.2f} times the output tokens per second of "
        f"{report.baseline} (95 % interval {first.low:.2f} to {first.high:.2f}).",
        _range(arm.arm, closed),
    ]
    if arm.mean_category_speedup is not None:
        mean = f"{arm.mean_category_speedup:.2f}"
        sentences.append(f"Its mean speed-up over the kinds of prompts at {report.lowest_load} is {mean}.")
    return sentences


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
    """Up to which concurrency an arm is faster for certain, and from which it is slower."""
    pays = [each for each in closed if each.low > 1]
    costs = [each for each in closed if each.high < 1]
    if len(pays) == len(closed):
        return f"{arm} pays at every concurrency measured, up to {_users(closed[-1])}."
    if not pays and not costs:
        return f"No concurrency measured shows a clear difference between {arm} and the baseline."
    parts = [f"pays up to {_users(pays[-1])}" if pays else "pays at no concurrency measured"]
    if costs:
        parts.append(f"is slower from {_users(costs[0])} on")
    return f"{arm} {' and '.join(parts)}."


def _users(speedup: SpeedUp) -> str:
    return f"{speedup.level:g} user{'' if speedup.level == 1 else 's'}"


def result_line(report: Report, directory: Path) -> str:
    """One line of JSON for programs: where the report is, and its main figures."""
    document = {
        "report": str(directory / "report.json"),
        "html": str(directory / "report.html"),
        "complete": report.complete,
        "baseline": report.baseline,
        "requests": sum(point.requests for point in report.points),
        "failures": sum(point.failures for point in report.points),
        "speedups": [
            each.model_dump(include={"arm", "load", "value", "low", "high"}) for each in report.speedups
        ],
        "arms": [each.model_dump() for each in report.arms],
    }
    return json.dumps(document, separators=(",", ":"))
