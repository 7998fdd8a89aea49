"""Plans: the prediction is what a simulation of such steps brings, and the choice is the best of all there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.control.errors import ProfileError
from engine.plan import Candidate, Objective, load_plan
from engine.planned import section_of
from planner.plan.choose import NONE, best_of, choose, options
from planner.plan.plan import cells_at, make_plan
from planner.plan.predict import Predictor, Traffic
from planner.plan.profiles import Profile
from planner.plan.replay import replay
from planner.plan.section import speculation_section
from planner.plan.words import answer
from planner.profile.records import RequestRecord
from tests.planner.synthetic_profile import chain, profile, records

THROUGHPUT = Objective()


def steep(context: int, batch: int, size: int) -> float:
    """Free up to eight rows, then a millisecond each."""
    return 10 + max(0, batch * size - 8) + batch * context / 1000


def drafting(context: int, batch: int, size: int) -> float:
    return 0.1 * batch * size


def simulated(found: Profile, length: int, batch: int, context: int, steps: int = 4_000) -> float:
    """Tokens a millisecond of requests that are decoded together, each taking its steps at random from the records."""
    random = np.random.default_rng(3)
    pool = [(len(d.path), d.nodes) for record in found.records for d in record.drafts]
    predictor = Predictor(found, samples=0)
    costs = {
        rows: float(predictor.verify.milliseconds(context, batch, [rows / batch])[0, 0])
        for rows in range(batch, batch * (length + 1) + 1)
    }
    left = [list(pool[random.integers(len(pool))]) for _ in range(batch)]
    tokens = milliseconds = 0.0
    for _ in range(steps):
        rows = batch
        for each in left:
            drafted = min(length, each[1])
            taken = min(each[0], drafted)
            rows += drafted
            tokens += taken + 1
            if taken == each[0]:
                each[:] = pool[random.integers(len(pool))]
            else:
                each[:] = each[0] - taken - 1, max(0, each[1] - taken - 1)
        milliseconds += costs[rows] + (drafting(context, batch, length) if length else 0.0)
    return tokens / milliseconds


@pytest.mark.parametrize(("batch", "length"), [(1, 7), (4, 3), (4, 0)])
def test_the_prediction_is_what_a_simulation_brings(batch: int, length: int) -> None:
    found = profile(records(0.6), steep, drafting, buckets=(2, 4, 6, 8, 12, 16))
    behaviour = replay(found.records, length, adaptive=False)
    tau, step_ms, draft_ms = Predictor(found, samples=0).decoding(behaviour, 100, batch)
    assert (batch * tau / (step_ms + draft_ms))[0] == pytest.approx(
        simulated(found, length, batch, 100), rel=0.03
    )


@pytest.mark.parametrize("concurrency", [1, 2, 3, 8])
def test_without_reading_users_get_what_decoding_brings(concurrency: int) -> None:
    found = profile(records(0.6), steep, drafting)
    predictor = Predictor(found, samples=0)
    behaviour = replay(found.records, 3, adaptive=False)
    tau, step_ms, draft_ms = predictor.decoding(behaviour, 150, concurrency)
    told = predictor.predict(behaviour, Traffic(concurrency, 100, 100))
    # The first token of a hundred comes with the prompt.
    assert told.tokens_per_second[0] == pytest.approx(
        1e3 * concurrency * 100 / 99 * (tau / (step_ms + draft_ms))[0], rel=0.01 if concurrency == 1 else 0.06
    )


def test_users_that_wait_for_prompts_are_counted_once() -> None:
    """One user: a prompt of 300 tokens is three chunks of 50 ms, of which the last one is not full."""
    found = profile(records(0.6), lambda *_: 10.0, read_ms=50.0)
    told = Predictor(found, samples=0).predict(replay(found.records, 0, adaptive=False), Traffic(1, 300, 11))
    reading = 50 + 50 + 50 * 44 / 128
    assert told.ttft_ms[0] == pytest.approx(reading)
    assert told.tpot_ms[0] == pytest.approx(10)
    assert told.latency_ms[0] == pytest.approx(reading + 100)


@pytest.mark.parametrize(("cached", "tokens"), [(0, 300), (256, 44), (200, 100), (300, 1)])
def test_what_the_service_has_of_a_prompt_is_not_read(cached: int, tokens: int) -> None:
    """Chunks of 128 from the end of what is cached on; the last token is always read, for the first of the answer."""
    found = profile(records(0.6), lambda *_: 10.0, read_ms=50.0)
    load = Traffic(1, 300, 11, cached_tokens=cached)
    told = Predictor(found, samples=0).predict(replay(found.records, 0, adaptive=False), load)
    assert told.ttft_ms[0] == pytest.approx(50 * tokens / 128)
    assert told.tpot_ms[0] == pytest.approx(10)


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.8])
def test_the_choice_is_the_best_of_all(rate: float) -> None:
    """Brute force: every length at every concurrency, valued by the formulas and not by the planner."""
    found = profile(records(rate), steep, drafting)
    known, predictor = options([found], 0.0), Predictor(found, samples=0)
    behaviours = [replay(found.records, length, adaptive=False) for length in range(16)]
    for concurrency in (1, 4, 8):
        figures = [predictor.decoding(behaviour, 150, concurrency) for behaviour in behaviours]
        rates = [float(tau[0] / (step_ms + draft_ms)[0]) for tau, step_ms, draft_ms in figures]
        cell = choose(known, Traffic(concurrency, 100, 100), THROUGHPUT)
        static = [each for each in cell.candidates if not each.candidate.adaptive]
        best = max(static, key=lambda each: each.worth)
        assert len(static) == 16
        assert rates[best.candidate.draft_length] == pytest.approx(max(rates), rel=0.01)
        most = max(each.worth for each in cell.candidates)
        alike = [each.candidate.draft_length for each in cell.candidates if each.worth >= 0.97 * most]
        assert cell.best.worth >= 0.97 * most and cell.best.candidate.draft_length == min(alike)


def test_latency_is_that_of_the_slowest_tenth() -> None:
    found = profile(records(0.4), steep, drafting)
    cell = choose(options([found], 0.0), Traffic(1, 100, 100), Objective(kind="latency"))
    for outlook in cell.candidates[:16:2]:
        behaviour = replay(found.records, outlook.candidate.draft_length, adaptive=outlook.candidate.adaptive)
        slow = float(np.quantile(behaviour.steps / behaviour.tokens, 0.9))
        step = outlook.step_ms.value + outlook.draft_ms.value
        assert -outlook.worth == pytest.approx(99 * slow * step)
    most = max(each.worth for each in cell.candidates)
    alike = [each.candidate.draft_length for each in cell.candidates if each.worth >= 1.03 * most]
    assert cell.best.candidate.draft_length == min(alike) and cell.best.worth >= 1.03 * most


def test_drafts_that_are_never_right_lose_to_none_and_ties_go_to_the_smaller() -> None:
    wrong = [RequestRecord("1", "a", 0.0, 11, 11, [chain(0, 7)] * 10)] * 2
    cell = choose(options([profile(wrong, lambda *_: 10.0)], 0.0), Traffic(1, 100, 50), THROUGHPUT)
    assert cell.best.candidate == NONE  # all of them are equal
    cell = choose(options([profile(wrong, steep, drafting)], 0.0), Traffic(4, 100, 50), THROUGHPUT)
    assert cell.best.candidate == NONE and cell.best.gain.value == 1
    assert all(each.gain.value < 1 for each in cell.candidates[1:])


def test_probes_are_run_in_every_step_that_drafts() -> None:
    """A window of 4 x 3 has seven: with the root and eight guesses as many rows as were measured."""
    section = {"method": "lookahead", "window": 4, "ngram": 3, "verification_set": 4, "adaptive": True}
    found = replace(profile(records(0.6, drafted=8), steep, drafting), speculation=section)
    known = {option.candidate.draft_length: option for option in options([found], 0.0)}
    assert sorted(known) == list(range(9))
    for length in (0, 1, 8):
        _, step_ms, _ = known[length].predictor.decoding(known[length].behaviour, 100, 1)
        rows = 1 + length + (7 if length else 0)
        assert step_ms[0] == pytest.approx(steep(100, 1, rows), abs=0.05)


def test_the_interval_knows_how_much_requests_differ() -> None:
    """Half the requests accept everything, half nothing: with few of them nobody knows what the next ones do."""

    def mixed(count: int) -> list[RequestRecord]:
        halves = [records(0.95, requests=count), records(0.02, requests=count)]
        return [record for half in halves for record in half]

    widths = []
    for count in (3, 60):
        cell = choose(options([profile(mixed(count), steep)], 0.0), Traffic(1, 100, 50), THROUGHPUT)
        widths.append(cell.best.gain.high - cell.best.gain.low)
        assert cell.best.gain.low < cell.best.gain.value < cell.best.gain.high
    assert widths[0] > 2.5 * widths[1]


def test_goodput_counts_requests_within_the_limit() -> None:
    found = profile(records(0.6), steep, drafting)
    known, traffic = options([found], 0.0), Traffic(4, 100, 100)
    free = choose(known, traffic, THROUGHPUT)
    plain = free.candidates[0]
    tight = choose(known, traffic, Objective(kind="goodput", tpot_ms=plain.tpot_ms.value * 0.9))
    assert tight.candidates[0].worth == 0 < tight.best.worth <= tight.best.tokens_per_second.value
    assert choose(known, traffic, Objective(kind="goodput", tpot_ms=0.1)).best.worth == 0


def test_two_profiles_are_compared_by_what_each_gains_in_its_own_run() -> None:
    """The second was measured while the machine was half as fast, and accepts more."""
    first = profile(records(0.3), steep)
    second = profile(records(0.7), lambda *key: 2 * steep(*key), name="other")
    cell = choose(options([first, second], 0.0), Traffic(1, 100, 100), THROUGHPUT)
    assert cell.best.candidate.deployment == "other"
    alone = choose(options([second], 0.0), Traffic(1, 100, 100), THROUGHPUT)
    assert cell.best.gain == alone.best.gain
    ratio = cell.best.tokens_per_second.value / cell.candidates[0].tokens_per_second.value
    assert ratio == pytest.approx(cell.best.gain.value)


@pytest.mark.parametrize(
    ("worths", "served"),
    [
        ([{"a": 100.9, "b": 90}, {"a": 90, "b": 80}], []),
        ([{"a": 101.2, "b": 90}, {"a": 90, "b": 80}], ["a"]),
        ([{"a": 150, "b": 148.9}, {"a": 120, "b": 120.5}], ["a"]),
        ([{"a": 150, "b": 149}, {"a": 120, "b": 122}], ["b"]),
        ([{"a": 150, "b": 140}, {"a": 120, "b": 130}], ["a", "b"]),
    ],
    ids=["a hundredth", "more", "as good in one", "as good in the other", "each in one"],
)
def test_only_deployments_without_which_a_load_would_get_less_are_served(
    worths: list[dict[str, float]], served: list[str]
) -> None:
    """Of two loads, in which none gives 100."""
    found = [profile(records(0.7), steep, name=name) for name in "ab"]
    loads = [Traffic(level, 100, 64) for level in (1, 2)]
    plan = make_plan("a", found, options(found, 0.0), loads, THROUGHPUT, 0.0)
    cells = []
    for cell, worth in zip(plan.cells, worths, strict=False):
        none = cell.candidates[0].model_copy(update={"worth": 100.0})
        drafting = [
            next(each for each in cell.candidates if each.candidate.deployment == name).model_copy(
                update={"worth": value}
            )
            for name, value in worth.items()
        ]
        best = max([none, *drafting], key=lambda each: each.worth)
        cells.append(cell.model_copy(update={"best": best, "candidates": [none, *drafting]}))
    assert plan.model_copy(update={"cells": cells}).served == served


def test_a_plan_is_written_read_and_asked(tmp_path: Path) -> None:
    found = profile(records(0.7), steep, drafting)
    loads = [Traffic(level, 100, 64) for level in (1, 2, 4, 8)]
    plan = make_plan("mine", [found], options([found], 0.0), loads, THROUGHPUT, 0.0)
    assert {cell.context for cell in plan.cells} == {
        132,
        512,
    }  # a context of 32 has no room for such an answer
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json())
    again = load_plan(path)
    assert again == plan
    here = {cell.concurrency: cell.best.candidate for cell in cells_at(plan, 132)}
    assert [again.choice(users, 200) for users in (1, 2, 3, 4, 5, 20)] == [
        here[key] for key in (1, 2, 4, 4, 8, 8)
    ]


@pytest.mark.parametrize(
    ("gain", "length", "words"),
    [(1.02, 0, "hardly, speculation"), (1.06, 3, "yes. "), (0.9, 0, "no, speculation")],
)
def test_drafts_have_to_bring_more_than_predictions_are_off_by(gain: float, length: int, words: str) -> None:
    found = profile(records(0.4), steep, drafting)
    cell = choose(options([found], 0.0), Traffic(1, 100, 64), THROUGHPUT)
    exact = cell.best.gain.model_copy(update={"value": gain, "low": gain, "high": gain})
    drafted = [
        each.model_copy(update={"worth": gain, "gain": exact})
        for each in cell.candidates
        if each.candidate.draft_length == 3
    ]
    able = [cell.candidates[0].model_copy(update={"worth": 1.0}), *drafted]
    best = best_of(able)
    assert best.candidate.draft_length == length
    told = answer(cell.model_copy(update={"candidates": able, "best": best}), THROUGHPUT, ["mine"])
    assert f": {words}" in told


def test_the_schedule_is_the_best_length_of_each_concurrency() -> None:
    found = profile(records(0.7), steep, drafting)
    cells = [choose(options([found], 0.0), Traffic(level, 100, 64), THROUGHPUT) for level in (1, 2, 4, 8)]
    section = speculation_section(found, cells)
    able = [
        [
            each
            for each in cell.candidates
            if each.candidate.adaptive == section["adaptive"] or each.candidate == NONE
        ]
        for cell in cells
    ]
    way = [best_of(outlooks).candidate.draft_length for outlooks in able]
    schedule = section["draft_length_schedule"]
    assert section["draft_length"] == way[0] == max(schedule.values())
    for level, length in zip((1, 2, 4, 8), way, strict=True):
        bound = min((key for key in schedule if key >= level), default=None)
        assert (schedule[bound] if bound else 0) == length
    assert speculation_section(profile(records(0.01), steep, drafting), []) == {"method": "none"}


def test_of_drafts_that_are_made_in_turns_the_whole_length_is_planned() -> None:
    """The drafter among the first tokens as before, and less of it only where all of the draft is shorter."""
    for rate, drafted in ((0.9, 4), (0.3, 4)):
        own = profile(records(rate), steep, drafting)
        section = {"method": "eagle3", "checkpoint": "c", "draft_length": drafted}
        found = replace(own, speculation=section | {"suffix_automaton": {"threshold": 2, "chain_length": 15}})
        cells = [choose(options([found], 0.0), Traffic(level, 100, 64), THROUGHPUT) for level in (1, 2, 4)]
        planned = speculation_section(found, cells)
        longest = max(planned["draft_length_schedule"].values())
        assert planned["suffix_automaton"] == {"threshold": 2, "chain_length": longest}
        assert planned["draft_length"] == min(drafted, longest) < 15
        assert (longest > drafted) == (rate > 0.5)
        section_of("planned", planned)


def test_a_way_that_keeps_a_limit_is_taken_although_it_gains_no_tokens() -> None:
    """One way of drafting is worth more than none by the objective, and the other one is worth nothing."""
    found = profile(records(0.4), steep, drafting)
    cell = choose(options([found], 0.0), Traffic(1, 100, 64), THROUGHPUT)
    kept = Candidate(deployment="mine", method="anpd", draft_length=3, adaptive=True)
    changed = [
        each.model_copy(
            update={
                "worth": {kept: 2.0, NONE: 1.0}.get(each.candidate, 0.0),
                "gain": each.gain.model_copy(update={"value": 0.9 if each.candidate == kept else 1.0}),
            }
        )
        for each in cell.candidates
    ]
    section = speculation_section(found, [cell.model_copy(update={"candidates": changed})])
    assert section["adaptive"] and section["draft_length_schedule"] == {1: 3}


def test_a_temperature_that_was_not_profiled_is_refused() -> None:
    with pytest.raises(ProfileError, match="no records of temperature 1, only of 0"):
        options([profile(records(0.5), steep)], 1.0)
