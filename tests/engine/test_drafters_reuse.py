"""A request that takes over cache rows is drafted for as if it had computed them: every step accepts the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.engine import Engine
from engine.request import GenerationRequest
from speculators.base import Speculator
from speculators.eagle import draft
from tests.drafters import SPECULATIONS, TinyDrafters
from tests.engine.cache_rows import cache_row
from tests.engine.driving import Outcome, check_empty, make_engine, prompt_of, run, submit
from tests.engine.test_drafters_output import runner_for

pytestmark = pytest.mark.torch

HIDDEN = [name for name in SPECULATIONS if name.startswith(("eagle", "peagle"))]
CACHING = [*HIDDEN, "draft_model, chain"]
each_kind = pytest.mark.parametrize("name", [*CACHING, "medusa, tree"])
CHUNK = 24


SLOTS = 4
_SPECULATORS: dict[str, list[Speculator]] = {}


def engine_for(drafters: TinyDrafters, name: str, *, reuse: bool) -> Engine:
    """A new engine on the runner and the speculator that others have used: nothing of them may be seen."""
    if name not in _SPECULATORS:
        _SPECULATORS[name] = drafters.speculators(name, "int8", planted=True, slots=SLOTS)
    return make_engine(
        runner_for(drafters, "int8", _SPECULATORS[name]),
        _SPECULATORS[name],
        max_batch_size=SLOTS - 1,
        prefill_chunk=CHUNK,
        idle_prefill_chunk=CHUNK,
        kv_cache_reuse=reuse,
    )


def run_kept(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Outcome]:
    """Run them one after another; what they leave in the cache stays."""
    outcomes = []
    for request in requests:
        outcomes.append(submit(engine, request))
        while engine.step():
            pass
    return outcomes


def emitted(outcome: Outcome) -> list[int]:
    """Tokens of every step."""
    return [len(event.tokens) for event in outcome.events]


def drafters_rows(engine: Engine, request: GenerationRequest) -> NDArray[np.generic]:
    """What the drafter's own cache holds of a request after its prompt, [rows, ...]."""
    drafter: Any = [*engine._drafting.speculators.values()][-1]
    outcome = submit(engine, replace(request, max_tokens=12))
    while not outcome.tokens:
        engine.step()
    (item,) = engine._scheduler.running.values()
    engine.step()  # a draft model reads when it drafts
    rows = range(len(request.prompt) - 1)
    found = np.stack(
        [cache_row(drafter._graph._graph.kernel, item.blocks[row // 32], row % 32) for row in rows]
    )
    engine.cancel(item.id)
    return found


def steps(
    drafters: TinyDrafters,
    name: str,
    earlier: Sequence[GenerationRequest],
    request: GenerationRequest,
) -> tuple[list[int], list[int], int]:
    """Tokens of every step of a request after others, and without them and reuse; and the blocks that it reused."""
    after = run_kept(engine_for(drafters, name, reuse=True), [*earlier, request])[-1]
    (alone,) = run(engine_for(drafters, name, reuse=False), [request])
    assert after.tokens == alone.tokens
    return emitted(after), emitted(alone), after.last.metrics.kv_reused_blocks


def known(drafters: TinyDrafters, length: int) -> tuple[int, ...]:
    """A prompt that a planted drafter goes on with."""
    return tuple(drafters.traces("int8")[0].tokens[:length])


@pytest.mark.parametrize("name", SPECULATIONS)
def test_the_same_prompt_again(name: str, tiny_drafters: TinyDrafters) -> None:
    request = GenerationRequest(known(tiny_drafters, 69), 40)
    after, alone, reused = steps(tiny_drafters, name, [request], request)
    assert after == alone and reused == 2
    assert max(alone) > 1, "the drafter is right now and then, or this would tell nothing"


@pytest.mark.parametrize("length", [63, 64, 65, 96])
@each_kind
def test_prompts_that_begin_alike_and_part_wherever(
    name: str, length: int, tiny_drafters: TinyDrafters
) -> None:
    """A row of an EAGLE drafter depends on the token after its own: rows at the end of a block may be another's."""
    text = (*known(tiny_drafters, 71), *prompt_of(40))
    earlier = [GenerationRequest((*text[:length], 1), 3), GenerationRequest((*text[:length], 2, 3), 3)]
    for more in (2, 5, 30):
        request = GenerationRequest((*text[:length], *prompt_of(more, seed=7)), 30)
        after, alone, reused = steps(tiny_drafters, name, earlier, request)
        assert after == alone
        assert reused >= length // 32 - 1
        if name in CACHING:
            reusing, fresh = (engine_for(tiny_drafters, name, reuse=reuse) for reuse in (True, False))
            run_kept(reusing, earlier)
            found = drafters_rows(reusing, request)
            np.testing.assert_array_equal(found, drafters_rows(fresh, request))


@each_kind
def test_turns_of_a_chat(name: str, tiny_drafters: TinyDrafters) -> None:
    """Each prompt is the one before, its answer, and more."""
    chatting = engine_for(tiny_drafters, name, reuse=True)
    prompt, turns = known(tiny_drafters, 40), []
    for turn in range(4):
        request = GenerationRequest(prompt, 25)
        (answer,) = run_kept(chatting, [request])
        turns.append((request, answer))
        prompt = (*prompt, *answer.tokens, *prompt_of(7, seed=turn))
    reused = sum(answer.last.metrics.kv_reused_blocks for _, answer in turns)
    assert reused in (1 + 2 + 3, 2 + 3 + 4)  # the second where answers are taken over, too
    for request, answer in turns:
        (alone,) = run(engine_for(tiny_drafters, name, reuse=False), [request])
        assert emitted(answer) == emitted(alone)


@pytest.mark.parametrize("name", [*HIDDEN, "draft_model, chain", "medusa, tree"])
def test_requests_that_were_not_drafted_for_leave_nothing_that_a_drafter_could_take_for_its_own(
    name: str, tiny_drafters: TinyDrafters
) -> None:
    request = GenerationRequest(known(tiny_drafters, 70), 40)
    plain = replace(request, draft_length=0)
    after, alone, reused = steps(tiny_drafters, name, [plain], request)
    assert after == alone
    assert reused == (0 if name in HIDDEN else 2), (
        "without hidden states the target's rows are computed again"
    )
    assert steps(tiny_drafters, name, [plain, request, plain], request)[2] == 2
    assert steps(tiny_drafters, name, [request], plain)[2] == 2
    after, alone, reused = steps(tiny_drafters, name, [request, plain], request)
    assert after == alone and reused == 2


@pytest.mark.parametrize("name", CACHING)
def test_a_request_of_one_token_reads_the_prompt_for_others(name: str, tiny_drafters: TinyDrafters) -> None:
    """Whoever warms the cache up asks for no more."""
    request = GenerationRequest(known(tiny_drafters, 70), 40)
    after, alone, reused = steps(tiny_drafters, name, [replace(request, max_tokens=1)], request)
    assert after == alone and reused == 2


def _allowed(most: Sequence[int], batch_size: int) -> int:
    return most[0]


@pytest.mark.parametrize("name", HIDDEN)
def test_rows_that_wait_for_a_draft_are_bounded(
    name: str, tiny_drafters: TinyDrafters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is drafted while too many decode: the drafter reads along all the same, and knows it all afterwards."""
    request = GenerationRequest(known(tiny_drafters, 14), 70)
    found = []
    for most in (10, 1000):
        monkeypatch.setattr(draft, "_MOST_WAITING", most)
        speculators = tiny_drafters.speculators(name, "int8", planted=True, slots=1)
        allowed = [0]
        runner = runner_for(tiny_drafters, "int8", speculators)
        engine = make_engine(runner, speculators, max_batch_size=1, longest_draft=partial(_allowed, allowed))
        outcome = submit(engine, request)
        while len(outcome.tokens) < 30:
            engine.step()
        drafter: Any = speculators[-1]
        waiting = drafter._states[1].waiting
        assert waiting <= 11 if most == 10 else waiting == 30
        allowed[0] = 9
        while engine.step():
            pass
        check_empty(engine)
        found.append(emitted(outcome))
    assert found[0] == found[1] and max(found[0]) > 1


@each_kind
def test_any_order_of_requests(name: str, tiny_drafters: TinyDrafters) -> None:
    """Texts that share beginnings, side by side and one after the other, some cancelled, in a cache that is too small
    for all."""
    base = (*known(tiny_drafters, 71), *prompt_of(60))
    requests = [
        GenerationRequest((*base[:length], *prompt_of(own, seed=own)), 8 + own, draft_length=limit)
        for length, own, limit in (
            (64, 3, None), (96, 9, None), (33, 2, 0), (100, 20, None), (64, 4, 2), (128, 6, None), (32, 11, None),
            (97, 9, 0), (96, 9, None), (71, 12, None), (65, 3, 1), (131, 5, None), (64, 3, None), (95, 7, None),
        )
    ]  # fmt: skip
    engine = engine_for(tiny_drafters, name, reuse=True)
    outcomes = []
    for number, request in enumerate(requests * 2):
        outcomes.append((request, number % 5 == 3, submit(engine, request)))
        for _ in range(1 + number % 4):
            engine.step()
        if number % 5 == 3:
            engine.cancel(number + 1)
    while engine.step():
        pass
    check_empty(engine)
    expected = {
        request: emitted(run(engine_for(tiny_drafters, name, reuse=False), [request])[0])
        for request in set(requests)
    }
    for request, cancelled, outcome in outcomes:
        found = emitted(outcome)
        if cancelled:
            assert found[:-1] == expected[request][: len(found) - 1]
        else:
            assert found == expected[request]
    assert engine.statistics.reused_blocks > 20


@pytest.mark.parametrize("name", SPECULATIONS)
def test_a_generation_that_goes_on_in_another_call_is_drafted_for(
    name: str, tiny_drafters: TinyDrafters
) -> None:
    """Whether or not the rows of the earlier call are at hand."""
    request = GenerationRequest(known(tiny_drafters, 40), 60)
    for reuse in (True, False):
        engine = engine_for(tiny_drafters, name, reuse=reuse)
        (whole,) = run_kept(engine, [request])
        for done in (1, 2, 7, 30):
            prompt = (*request.prompt, *whole.tokens[:done])
            rest = replace(request, prompt=prompt, max_tokens=60 - done, continued=done)
            (outcome,) = run_kept(engine, [rest])
            assert outcome.tokens == whole.tokens[done:]
            assert outcome.last.metrics.total_draft_tokens > 0
