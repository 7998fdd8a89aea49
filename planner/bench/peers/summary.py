"""What a comparison says, from its records.

Speeds are tokens over time, summed over a category's answers; an arm's speed and a speed-up are means over categories,
so that a category with long answers does not outweigh the others. Where prompts of several categories were asked at
once, all prompts are one category. A speed-up compares an arm with its own engine's plain decoding; the interval is a
bootstrap over the prompts of each category, or the groups that were asked at once, the same for both arms.

Of a group the decode rate is of the time in which all its requests are decoded or have ended: tokens after the moment
when each has its first token, over the time from then to the last one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import DrafthouseError
from planner.bench.peers.arms import OURS
from planner.bench.peers.beside import BASE
from planner.bench.peers.records import PeerRecord
from planner.profile.acceptance import Figure, ratio

_RESAMPLES = 2000
_DECODE, _WHOLE = 0, 1  # tokens and seconds after the first token of each, or with the prompts
MIXED = "all prompts"
Totals = NDArray[np.float64]
"""``[groups, 2, 2]``: decode or whole; tokens, seconds."""


class SummaryError(DrafthouseError, ValueError):
    """The records cannot be compared."""


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm's figures.

    Attributes:
        engine, method: the arm.
        decode_rate: tokens a second after the first token of each request.
        whole_rate: tokens a second, the prompts' time included.
        speedup: decode rate over that of the engine's plain decoding.
        by_category: the speed-up of each category, whose mean the other one is.
        interval_by_category: of each of them, 95 %; None where the category has a single prompt, or group of prompts.
        interval: of the speed-up; None where one of a category is.
        to_ours: decode rate over that of our engine's plain decoding.
        acceptance_length: tokens a target step; None if the engine does not tell, or there was no step.
        acceptance_by_category: the same of each category, also where prompts of several were asked at once.
        by_position: of the drafts that reached a depth, the share that was accepted so deep, from depth 1; empty if the
            engine does not tell, or drafts nothing.
        draft_ms: milliseconds of drafting for each drafted token; None if the engine does not tell, or drafted nothing.
        equal, compared: prompts whose answer is that of the engine's plain decoding, token for token (sampled: with the
            same seed), and those that were compared.
    """

    engine: str
    method: str
    decode_rate: float
    whole_rate: float
    speedup: float
    by_category: Mapping[str, float]
    interval_by_category: Mapping[str, tuple[float, float] | None]
    interval: tuple[float, float] | None
    to_ours: float
    acceptance_length: float | None
    acceptance_by_category: Mapping[str, float | None]
    by_position: Sequence[Figure]
    draft_ms: float | None
    equal: int
    compared: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summarise(records: Sequence[PeerRecord]) -> list[ArmSummary]:
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
        for category, groups in totals[engine, method].items():
            if not groups[:, _DECODE, 0].sum():
                raise SummaryError(f"{engine} {method}: no answer in {category} has more than one token")
    ours = totals.get((OURS, BASE))
    return [
        _arm(
            arm, totals[arm], totals[arm[0], BASE], ours, by_arm[arm], by_arm[arm[0], BASE],
            np.random.default_rng(0),
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
    by_category, resampled = _by_category(here, base), _resampled(here, base, random)
    intervals = {name: _interval(ratios, len(here[name])) for name, ratios in resampled.items()}
    return ArmSummary(
        engine=arm[0],
        method=arm[1],
        decode_rate=_mean_rate(here, _DECODE),
        whole_rate=_mean_rate(here, _WHOLE),
        speedup=float(np.mean(list(by_category.values()))),
        by_category=by_category,
        interval_by_category=intervals,
        interval=_interval(
            np.mean(list(resampled.values()), axis=0), min(len(groups) for groups in here.values())
        ),
        to_ours=float(np.mean(list(_by_category(here, ours).values()))) if ours else float("nan"),
        acceptance_length=_acceptance_length(records),
        acceptance_by_category={
            name: _acceptance_length([record for record in records if record.category == name])
            for name in sorted({record.category for record in records})
        },
        by_position=_by_position(records),
        draft_ms=_draft_ms(records),
        equal=sum(tokens == expected for tokens, expected in pairs),
        compared=len(pairs),
    )


def _asked(records: Sequence[PeerRecord]) -> set[tuple[str, int, str]]:
    return {(record.prompt, record.round, record.group) for record in records}


def _totals(records: Sequence[PeerRecord]) -> dict[str, Totals]:
    """Of each category, the sums of each group over the rounds, in the order of their first prompts' ids."""
    groups: dict[tuple[int, str], list[PeerRecord]] = {}
    for record in records:
        groups.setdefault((record.round, record.group or record.prompt), []).append(record)
    mixed = any(len({record.category for record in group}) > 1 for group in groups.values())
    sums: dict[str, dict[str, Totals]] = {}
    for (_, name), group in groups.items():
        found = sums.setdefault(MIXED if mixed else group[0].category, {})
        found[name] = found.get(name, np.zeros((2, 2))) + _figures(group)
    return {
        category: np.stack([found[name] for name in sorted(found)])
        for category, found in sorted(sums.items())
    }


def _figures(group: Sequence[PeerRecord]) -> Totals:
    begun = max(record.first_token_seconds for record in group)
    ended = max(record.seconds for record in group)
    after = sum(_later(record, begun) for record in group)
    count = sum(len(record.tokens) for record in group)
    return np.array([(after, ended - begun), (count, ended)], np.float64)


def _later(record: PeerRecord, begun: float) -> int:
    """Tokens that came when all requests of its group had begun to be decoded."""
    if not record.group:
        return max(len(record.tokens) - 1, 0)
    return sum(seconds > begun for seconds in record.token_seconds)


def _mean_rate(totals: dict[str, Totals], which: int) -> float:
    sums = [groups.sum(axis=0)[which] for groups in totals.values()]
    return float(np.mean([tokens / seconds for tokens, seconds in sums]))


def _by_category(here: dict[str, Totals], base: dict[str, Totals]) -> dict[str, float]:
    return {name: float(_ratio(here[name], base[name])) for name in here}


def _ratio(here: Totals, base: Totals) -> Any:
    """Ratio of the decode rates of one category; arrays with leading axes give as many."""
    (tokens, seconds), (tokens_0, seconds_0) = (
        np.moveaxis(part.sum(axis=-3)[..., _DECODE, :], -1, 0) for part in (here, base)
    )
    return (tokens / seconds) / (tokens_0 / seconds_0)


def _resampled(
    here: dict[str, Totals], base: dict[str, Totals], random: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Of each category, the speed-ups over groups that were drawn from it, as many as it has."""
    ratios = {}
    for name, groups in here.items():
        drawn = random.integers(len(groups), size=(_RESAMPLES, len(groups)))
        with np.errstate(divide="ignore", invalid="ignore"):  # nothing but answers of no tokens was drawn
            ratios[name] = _ratio(groups[drawn], base[name][drawn])
    return ratios


def _interval(ratios: NDArray[np.float64], fewest: int) -> tuple[float, float] | None:
    """Of speed-ups over drawn groups, of which a category has `fewest`."""
    if fewest < 2:
        return None
    low, high = np.quantile(ratios[np.isfinite(ratios)], (0.025, 0.975))
    return float(low), float(high)


def _acceptance_length(records: Sequence[PeerRecord]) -> float | None:
    steps = [record.steps for record in records if record.steps is not None]
    if len(steps) < len(records) or not sum(steps):
        return None
    return sum(len(record.tokens) for record in records) / sum(steps)


def _draft_ms(records: Sequence[PeerRecord]) -> float | None:
    tokens = sum(record.draft_tokens or 0 for record in records)
    return sum(record.draft_seconds or 0.0 for record in records) * 1e3 / tokens if tokens else None


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
