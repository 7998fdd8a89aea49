"""What a comparison says, from its records.

Speeds are tokens over time, summed over a category's answers; an arm's speed and a speed-up are means over categories,
so that a category with long answers does not outweigh the others. A speed-up compares an arm with its own engine's
plain decoding; the interval is a bootstrap over the prompts of each category, the same prompts for both arms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import DrafthouseError
from planner.bench.peers.arms import BASE, OURS
from planner.bench.peers.records import PeerRecord
from planner.profile.acceptance import Figure, ratio

_RESAMPLES = 2000
_DECODE, _WHOLE = 0, 1  # tokens and seconds after the first token, or with the prompt
Totals = NDArray[np.float64]
"""``[prompts, 2, 2]``: decode or whole; tokens, seconds."""


class SummaryError(DrafthouseError, ValueError):
    """The records cannot be compared."""


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm's figures.

    Attributes:
        engine, method: the arm.
        decode_rate: tokens a second after the first token.
        whole_rate: tokens a second, the prompt's time included.
        speedup: decode rate over that of the engine's plain decoding.
        by_category: the speed-up of each category, whose mean the other one is.
        interval: of the speed-up, 95 %; None where a category has a single prompt.
        to_ours: decode rate over that of our engine's plain decoding.
        acceptance_length: tokens a target step; None if the engine does not tell, or there was no step.
        by_position: of the drafts that reached a depth, the share that was accepted so deep, from depth 1; empty if the
            engine does not tell, or drafts nothing.
        equal, compared: prompts whose answer is that of the engine's plain decoding, and those that were compared.
    """

    engine: str
    method: str
    decode_rate: float
    whole_rate: float
    speedup: float
    by_category: Mapping[str, float]
    interval: tuple[float, float] | None
    to_ours: float
    acceptance_length: float | None
    by_position: Sequence[Figure]
    equal: int
    compared: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summarise(records: Sequence[PeerRecord], seed: int = 0) -> list[ArmSummary]:
    """One summary an arm, in the order in which the arms come first.

    Raises:
        SummaryError: an engine lacks its arm without speculation, an arm a prompt that its base has, or a category
            answers of more than one token.
    """
    arms = list(dict.fromkeys((record.engine, record.method) for record in records))
    by_arm = {arm: [record for record in records if (record.engine, record.method) == arm] for arm in arms}
    totals = {arm: _totals(items) for arm, items in by_arm.items()}
    for engine, method in arms:
        if (engine, BASE) not in totals:
            raise SummaryError(f"{engine} was not measured without speculation")
        if _asked(by_arm[engine, method]) != _asked(by_arm[engine, BASE]):
            raise SummaryError(f"{engine} {method} and {engine} {BASE} were not asked the same prompts")
        for category, prompts in totals[engine, method].items():
            if not prompts[:, _DECODE, 0].sum():
                raise SummaryError(f"{engine} {method}: no answer in {category} has more than one token")
    ours = totals.get((OURS, BASE))
    return [
        _arm(
            arm, totals[arm], totals[arm[0], BASE], ours, by_arm[arm], by_arm[arm[0], BASE],
            np.random.default_rng(seed),
        )
        for arm in arms
    ]  # fmt: skip


def best_of_each(summaries: Sequence[ArmSummary]) -> list[ArmSummary]:
    """Each engine's fastest arm, by decode rate."""
    engines = dict.fromkeys(item.engine for item in summaries)
    return [
        max((item for item in summaries if item.engine == engine), key=lambda item: item.decode_rate)
        for engine in engines
    ]


def _arm(
    arm: tuple[str, str],
    here: dict[str, Totals],
    base: dict[str, Totals],
    ours: dict[str, Totals] | None,
    records: Sequence[PeerRecord],
    base_records: Sequence[PeerRecord],
    random: np.random.Generator,
) -> ArmSummary:
    plain = {(item.prompt, item.round): item.tokens for item in base_records}
    pairs = [(item.tokens, plain[item.prompt, item.round]) for item in records]
    by_category = _by_category(here, base)
    return ArmSummary(
        engine=arm[0],
        method=arm[1],
        decode_rate=_mean_rate(here, _DECODE),
        whole_rate=_mean_rate(here, _WHOLE),
        speedup=float(np.mean(list(by_category.values()))),
        by_category=by_category,
        interval=_interval(here, base, random),
        to_ours=float(np.mean(list(_by_category(here, ours).values()))) if ours else float("nan"),
        acceptance_length=_acceptance_length(records),
        by_position=_by_position(records),
        equal=sum(tokens == expected for tokens, expected in pairs),
        compared=len(pairs),
    )


def _asked(records: Sequence[PeerRecord]) -> set[tuple[str, int]]:
    return {(record.prompt, record.round) for record in records}


def _totals(records: Sequence[PeerRecord]) -> dict[str, Totals]:
    """Of each category, the sums of each prompt over the rounds, prompts in the order of their ids."""
    sums: dict[str, dict[str, Totals]] = {}
    for record in records:
        count = len(record.tokens)
        after = (max(count - 1, 0), record.seconds - record.first_token_seconds)
        figures = np.array([after, (count, record.seconds)], np.float64)
        prompts = sums.setdefault(record.category, {})
        prompts[record.prompt] = prompts.get(record.prompt, np.zeros((2, 2))) + figures
    return {
        category: np.stack([prompts[name] for name in sorted(prompts)])
        for category, prompts in sorted(sums.items())
    }


def _mean_rate(totals: dict[str, Totals], which: int) -> float:
    sums = [prompts.sum(axis=0)[which] for prompts in totals.values()]
    return float(np.mean([tokens / seconds for tokens, seconds in sums]))


def _by_category(here: dict[str, Totals], base: dict[str, Totals]) -> dict[str, float]:
    return {name: float(_ratio(here[name], base[name])) for name in here}


def _ratio(here: Totals, base: Totals) -> Any:
    """Ratio of the decode rates of one category; arrays with leading axes give as many."""
    (tokens, seconds), (tokens_0, seconds_0) = (
        np.moveaxis(part.sum(axis=-3)[..., _DECODE, :], -1, 0) for part in (here, base)
    )
    return (tokens / seconds) / (tokens_0 / seconds_0)


def _interval(
    here: dict[str, Totals], base: dict[str, Totals], random: np.random.Generator
) -> tuple[float, float] | None:
    if min(len(prompts) for prompts in here.values()) < 2:
        return None
    ratios = []
    for name, prompts in here.items():
        drawn = random.integers(len(prompts), size=(_RESAMPLES, len(prompts)))
        with np.errstate(divide="ignore", invalid="ignore"):  # nothing but answers of no tokens was drawn
            ratios.append(_ratio(prompts[drawn], base[name][drawn]))
    means = np.mean(ratios, axis=0)
    low, high = np.quantile(means[np.isfinite(means)], (0.025, 0.975))
    return float(low), float(high)


def _acceptance_length(records: Sequence[PeerRecord]) -> float | None:
    steps = [record.steps for record in records if record.steps is not None]
    if len(steps) < len(records) or not sum(steps):
        return None
    return sum(len(record.tokens) for record in records) / sum(steps)


def _by_position(records: Sequence[PeerRecord]) -> list[Figure]:
    deepest = max((len(record.drafted or ()) for record in records), default=0)
    return [
        ratio(
            [_at(record.accepted, depth) for record in records],
            [_at(record.drafted, depth) for record in records],
        )
        for depth in range(deepest)
    ]


def _at(counts: Sequence[int] | None, depth: int) -> int:
    return counts[depth] if counts is not None and depth < len(counts) else 0
