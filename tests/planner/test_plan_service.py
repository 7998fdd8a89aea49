"""What serving adds is learned from loads without speculation, and predicted for those with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.plan import Estimate, Objective
from planner.plan.choose import NONE, choose, estimate, options
from planner.plan.predict import Predictor, Traffic
from planner.plan.profiles import Profile
from planner.plan.replay import replay
from tests.planner.synthetic_profile import profile, records

CHUNK_MS, READ_MS, PROMPT, OUTPUT = 2.5, 20.0, 100, 60
RATE = 0.6


def steep(context: int, batch: int, size: int) -> float:
    return 10 + max(0, batch * size - 8)


def engine_alone() -> Profile:
    return profile(records(RATE), steep, read_ms=READ_MS)


def served(users: int, length: int, *, chunk_ms: float = CHUNK_MS, answers: int = 400) -> float:
    """Tokens a second of a service, step by step: a prompt is read in one step, which waits for nobody else's."""
    random = np.random.default_rng(users)
    left: list[int] = [0] * users  # tokens to come; 0: its prompt is waiting to be read
    now, ended, tokens = 0.0, 0, 0
    while ended < answers:
        reads = next((user for user, count in enumerate(left) if not count), None)
        decoding = [user for user, count in enumerate(left) if count]
        if decoding:
            now += steep(0, len(decoding), 1 + length) + chunk_ms * len(decoding)
        for user in decoding:
            emitted = min(left[user], 1 + min(length, int(random.geometric(1 - RATE)) - 1))
            left[user] -= emitted
            tokens += emitted
            ended += not left[user]
        if reads is not None:
            now += READ_MS * PROMPT / 128
            tokens += 1
            left[reads] = OUTPUT - 1
    return 1e3 * tokens / now


def loads(users: Sequence[int], **service: Any) -> list[dict[str, Any]]:
    return [
        {
            "concurrency": count,
            "prompt_tokens": PROMPT,
            "output_tokens": OUTPUT,
            "tokens_per_second": [served(count, 0, **service)],
        }
        for count in users
    ]


@pytest.mark.parametrize("users", [1, 3, 8])
def test_what_a_service_gives_with_drafts_is_foreseen_from_what_it_gives_without(users: int) -> None:
    alone = engine_alone()
    known = Predictor(replace(alone, serving=loads([1, 2, 4, 8])), samples=0)
    behaviour = replay(alone.records, 3, adaptive=False)
    traffic, real = Traffic(users, PROMPT, OUTPUT), served(users, 3)
    assert known.knows_service
    # Recorded drafts go on behind what was accepted, so a length of three does a little better than the service's.
    assert known.predict(behaviour, traffic).tokens_per_second[0] == pytest.approx(real, rel=0.1)
    unknown = Predictor(alone, samples=0)
    assert not unknown.knows_service
    assert unknown.predict(behaviour, traffic).tokens_per_second[0] > 1.12 * real


def test_without_drafts_the_measured_loads_are_given_back() -> None:
    alone = engine_alone()
    measured = loads([1, 4, 8])
    predictor = Predictor(replace(alone, serving=measured), samples=0)
    plain = replay(alone.records, 0, adaptive=False)
    for load in measured:
        told = predictor.predict(plain, Traffic(load["concurrency"], PROMPT, OUTPUT))
        assert told.tokens_per_second[0] == pytest.approx(load["tokens_per_second"][0], rel=1e-4)


def test_a_service_that_costs_nothing_is_predicted_as_its_engine() -> None:
    alone = engine_alone()
    fast = [{**load, "tokens_per_second": [1e6]} for load in loads([1, 8])]
    plain, traffic = replay(alone.records, 3, adaptive=False), Traffic(4, PROMPT, OUTPUT)
    rates = [
        Predictor(each, samples=0).predict(plain, traffic).tokens_per_second[0]
        for each in (alone, replace(alone, serving=fast))
    ]
    assert rates[0] == rates[1]


def test_the_interval_is_one_of_another_round_and_not_of_the_mean_of_them() -> None:
    alone = engine_alone()
    plain, traffic = replay(alone.records, 0, adaptive=False), Traffic(1, PROMPT, OUTPUT)

    def interval(rounds: Sequence[float]) -> Estimate:
        load = {
            "concurrency": 1,
            "prompt_tokens": PROMPT,
            "output_tokens": OUTPUT,
            "tokens_per_second": list(rounds),
        }
        return estimate(Predictor(replace(alone, serving=[load])).predict(plain, traffic).tokens_per_second)

    assert interval([60.0, 60.0]).high - interval([60.0, 60.0]).low < 1e-3
    # Without a service, of what the steps of a round have in common: every point is a fifth slower in one of two.
    uneven = [{**row, "ms": [10.0, 12.0]} for row in alone.cost["verify"]]
    rest = {kind: [{**row, "ms": row["ms"][:2]} for row in alone.cost[kind]] for kind in ("draft", "read")}
    steps = Predictor(replace(alone, cost={"verify": uneven, **rest})).predict(plain, traffic).step_ms
    assert np.ptp(np.quantile(np.log(steps[1:] / steps[0]), [0.05, 0.95])) > np.log(12 / 10)
    # Of a machine whose rounds scatter by a tenth, nine of ten further ones lie inside, however many there were.
    random = np.random.default_rng(3)
    for count in (4, 40):
        found = [interval(60 * np.exp(0.1 * random.standard_normal(count))) for _ in range(20)]
        further = 60 * np.exp(0.1 * random.standard_normal(1000))
        inside = np.mean([(each.low <= further) & (further <= each.high) for each in found])
        assert 0.84 < inside < 0.95


def test_where_chunks_are_dear_drafts_pay_that_did_not() -> None:
    """A step of 1.8 times the time for 1.4 times the tokens: not in process, but where chunks take longer."""
    found = profile(records(0.3), lambda context, batch, size: 10.0 if batch * size <= 4 else 18.0)
    traffic, aim = Traffic(4, PROMPT, OUTPUT), Objective()
    assert choose(options([found], 0.0), traffic, aim).best.candidate == NONE
    load = {"concurrency": 4, "prompt_tokens": PROMPT, "output_tokens": OUTPUT, "tokens_per_second": [80.0]}
    known = options([replace(found, serving=[load])], 0.0)
    assert choose(known, traffic, aim).best.candidate.draft_length > 0


def test_loads_whose_steps_were_not_measured_are_left_out() -> None:
    alone = engine_alone()
    elsewhere = [{**load, "prompt_tokens": 4_000} for load in loads([1])]
    assert not Predictor(replace(alone, serving=elsewhere), samples=0).knows_service
    assert not Predictor(replace(alone, serving=loads([16], answers=20)), samples=0).knows_service
