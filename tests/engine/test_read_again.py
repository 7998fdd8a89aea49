"""What is read again so that it can be drafted for, and what is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.control.controller import Controller
from engine.request import GenerationRequest
from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.prompt_lookup import PromptLookupSpeculator
from speculators.tree import TokenTree
from tests.engine.driving import make_engine, run, submit
from tests.engine.simulated import plan_of
from tests.engine.tables import VOCABULARY, TableRunner, following, mixed
from tests.planner.synthetic_profile import profile, records


class Reader(Speculator):
    """Makes rows of the target's hidden states, and knows what mostly follows two tokens."""

    name, max_draft_length = "reader", 3
    requirements = Requirements(rows_ahead=0)

    def __init__(self) -> None:
        self._texts: dict[int, list[int]] = {}
        self._rows: dict[int, DrafterRows] = {}

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        assert rows is not None
        self._texts[request_id], self._rows[request_id] = list(prompt), rows

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [self._chain(*pair) for pair in zip(request_ids, budgets, strict=True)]

    def _chain(self, request_id: int, budget: int) -> TokenTree:
        text = list(self._texts[request_id])
        for _ in range(budget):
            text.append(following(*text[-2:]))
        return TokenTree.chain(text[len(self._texts[request_id]) :])

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        self._texts[request_id] += outcome.emitted
        self._rows[request_id].drafted += len(outcome.kept)

    def finish(self, request_id: int) -> None:
        del self._texts[request_id], self._rows[request_id]


def prompt(length: int) -> tuple[int, ...]:
    return tuple(mixed(3, place) % VOCABULARY for place in range(length))


@pytest.mark.parametrize(
    ("length", "max_tokens", "again"), [(200, 20, True), (600, 20, False), (600, 400, True)]
)
def test_a_prompt_is_read_again_where_that_is_less_than_what_drafts_bring(
    length: int, max_tokens: int, again: bool
) -> None:
    """Its rows are there without those of the drafter, which only makes its own along with the target's."""
    engine = make_engine(TableRunner(num_blocks=400), Reader(), max_sequence_length=1200)
    first = submit(engine, GenerationRequest(prompt(length), 2, draft_length=0))
    while engine.step():
        pass
    request = GenerationRequest((*prompt(length), 5, 6), max_tokens)
    second = submit(engine, request)
    while engine.step():
        pass
    assert first.last.metrics.kv_reused_blocks == 0
    assert (second.last.metrics.kv_reused_blocks == 0) == again
    assert (engine.statistics.accepted_tokens > 0) == again
    (alone,) = run(make_engine(TableRunner(num_blocks=400), max_sequence_length=1200), [request])
    assert second.tokens == alone.tokens
    third = submit(engine, request)
    while engine.step():
        pass
    assert third.last.metrics.kv_reused_blocks > 0 and third.tokens == alone.tokens


def test_who_does_without_the_drafter_is_drafted_for_by_others() -> None:
    """A controller's best choice is a drafter that does not know the request; its lookup does."""
    repeated = [1, 2]
    while len(repeated) < 600:
        repeated.append(following(*repeated[-2:]))
    lookup = PromptLookupSpeculator(2, 5)
    plan = plan_of(
        [
            profile(records(0.2, drafted=5), lambda context, batch, size: 20.0, name="lookup"),
            profile(
                records(0.9, drafted=3),
                lambda context, batch, size: 20.0,
                lambda context, batch, nodes: 1.0,
                name="reader",
            ),
        ]
    )
    controller = Controller(plan, {"lookup": [lookup], "reader": [Reader()]}, 16)
    engine = make_engine(TableRunner(num_blocks=400), policy=controller, max_sequence_length=1200)
    submit(engine, GenerationRequest(tuple(repeated), 2, draft_length=0))
    while engine.step():
        pass
    second = submit(engine, GenerationRequest(tuple(repeated), 40))
    while engine.step():
        pass
    assert second.last.metrics.kv_reused_blocks > 0
    steps = controller.decisions.at(1).steps
    assert steps["reader"] == 0 and steps["lookup"] > 3
    assert second.last.metrics.total_draft_tokens > 10
