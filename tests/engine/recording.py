"""What an engine on tables does with 40 requests, for every method and shape of drafts, as short hashes.

`python -m tests.engine.recording` writes `recorded_run.json` anew; that is right only where what is drafted or counted
is meant to change.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployments.speculation import Anpd
from engine.engine import Engine
from engine.outputs import RequestOutput
from engine.request import GenerationRequest, SamplingParams
from speculators.anpd import AnpdSpeculator
from speculators.base import Speculator
from speculators.draft_model.draft import DraftModelDrafter
from speculators.eagle.draft import EagleDrafter
from speculators.growth import Choices, Likeliest, TreeShape
from speculators.lookup import SureLookup
from speculators.medusa.draft import MedusaDrafter
from speculators.mlp_speculator.draft import MlpDrafter
from speculators.none import NoSpeculator
from speculators.prompt_lookup import PromptLookupSpeculator
from tests.engine.driving import check_empty, make_engine
from tests.engine.tables import (
    VOCABULARY,
    TableDrafter,
    TableHeads,
    TableRunner,
    following,
    fusion,
    mixed,
    mlp_stage,
)
from tests.speculators.adversaries import RandomDrafter

RECORD = Path(__file__).with_name("recorded_run.json")
REQUESTS = 40
_STEPS_A_HASH = 25
_CHAIN, _UNSURE = Likeliest.chain(5), Likeliest.chain(6, math.log(0.3))
_TREE = Likeliest(3, (3, 3, 3), 3, 9)
_PUBLISHED = Choices([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
_SCHEDULE = Anpd(method="anpd", draft_length=7, draft_length_schedule={1: 7, 3: 2})
_FEW = Anpd(method="anpd", draft_length=7, max_concurrency=2)


def _eagle(shape: TreeShape) -> Speculator:
    return EagleDrafter("eagle", TableDrafter(), None, shape, (-1,))


def _eagle3(shape: TreeShape) -> Speculator:
    return EagleDrafter("eagle3", TableDrafter(), fusion, shape, (2, 4, 5))


def _enhanced(shape: TreeShape) -> Sequence[Speculator]:
    return [SureLookup(2, shape.total), _eagle3(shape)]


@dataclass(frozen=True)
class Case:
    """A speculator, the engine's limits, and how the requests come: one after the other, or `batch` at once."""

    speculators: Callable[[], Speculator | Sequence[Speculator]]
    batch: int = 4
    limits: dict[str, Any] = field(default_factory=dict)
    drawn: bool = False
    one_kind_of_rows: bool = True


CASES: dict[str, Case] = {
    "none": Case(NoSpeculator),
    "anpd, alone": Case(AnpdSpeculator, batch=1),
    "anpd": Case(AnpdSpeculator),
    "anpd, always the most": Case(AnpdSpeculator, limits={"adaptive_drafts": False}),
    "anpd, scheduled": Case(AnpdSpeculator, limits={"longest_draft": _SCHEDULE.longest_draft}),
    "anpd, few": Case(AnpdSpeculator, limits={"longest_draft": _FEW.longest_draft}),
    "prompt lookup": Case(PromptLookupSpeculator),
    "prompt lookup, newest": Case(lambda: PromptLookupSpeculator(2, 8, use_oldest=False), batch=2),
    "draft model": Case(lambda: DraftModelDrafter(TableDrafter(), 5)),
    "draft model, unsure": Case(lambda: DraftModelDrafter(TableDrafter(), 6, math.log(0.3))),
    "draft model, two kinds of rows": Case(
        lambda: DraftModelDrafter(TableDrafter(), 5), one_kind_of_rows=False
    ),
    "medusa, chain": Case(lambda: MedusaDrafter(TableHeads(5), _CHAIN)),
    "medusa, tree": Case(lambda: MedusaDrafter(TableHeads(3), _TREE)),
    "medusa, published tree": Case(lambda: MedusaDrafter(TableHeads(3), _PUBLISHED)),
    "mlp speculator, chain": Case(lambda: MlpDrafter([mlp_stage] * 5, _CHAIN)),
    "mlp speculator, tree": Case(lambda: MlpDrafter([mlp_stage] * 3, _TREE)),
    "eagle, tree": Case(lambda: _eagle(_TREE)),
    "eagle, published tree": Case(lambda: _eagle(_PUBLISHED), batch=1),
    "eagle3, chain": Case(lambda: _eagle3(_CHAIN)),
    "eagle3, chain, always the most": Case(lambda: _eagle3(_CHAIN), limits={"adaptive_drafts": False}),
    "eagle3, unsure": Case(lambda: _eagle3(_UNSURE)),
    "eagle3, unsure, alone": Case(lambda: _eagle3(_UNSURE), batch=1),
    "eagle3, scheduled": Case(lambda: _eagle3(_UNSURE), limits={"longest_draft": _SCHEDULE.longest_draft}),
    "eagle3, tree": Case(lambda: _eagle3(_TREE)),
    "eagle3, tree, two kinds of rows": Case(lambda: _eagle3(_TREE), one_kind_of_rows=False),
    "eagle3 and lookup": Case(lambda: _enhanced(_UNSURE)),
    "eagle3 and lookup, chain": Case(lambda: _enhanced(_CHAIN)),
    "eagle3 and lookup, tree": Case(lambda: _enhanced(_TREE), batch=2),
    "eagle3 and lookup, scheduled": Case(
        lambda: _enhanced(_UNSURE), limits={"longest_draft": _SCHEDULE.longest_draft}
    ),
    "random trees, drawn": Case(lambda: RandomDrafter(VOCABULARY, 6, drawn=True, seed=3)),
}


def requests() -> Iterator[GenerationRequest]:
    """40 requests of every kind: greedy and sampled, short and long, alike, continued, with ends and drafts."""
    shared = tuple(mixed(5, place) % VOCABULARY for place in range(150))
    for number in range(REQUESTS):
        length = (1, 2, 3, 9, 33, 64, 100, 140)[number % 8]
        own = tuple(mixed(number, place % (7, 200)[number % 2]) % VOCABULARY for place in range(length))
        prompt = shared[:length] + own[: 1 + number % 3] if number % 4 == 1 else own
        most = (40, 1, 60, 25, 2, 50, 33)[number % 7]
        greedy = number % 3 != 2
        sampling = SamplingParams(
            0.0 if greedy else 0.8, (0, 8)[number % 2], (1.0, 0.9)[number % 5 == 2], number
        )
        more: dict[str, Any] = {}
        if number % 11 == 3:
            more["draft_length"] = (0, 2, 4)[number % 3]
        if number % 7 == 3:
            more["draft"] = _likely(prompt, 1 + number % 6)
        if number % 6 == 1 and length > 9:
            more["continued"] = (1, 7, 12)[number % 3]
        if number % 10 == 5:
            more |= {"end_ids": frozenset({3, 17}), "min_tokens": min(most, 6)}
        if number % 10 == 7:
            more["stop_sequences"] = ((4, 5), (9,))
        if number % 9 == 8:
            more["return_log_probs"] = True
        if number % 12 == 6:
            more["cache_salt"] = "salt"
        yield GenerationRequest(prompt, most, sampling, **more)


def _likely(prompt: Sequence[int], length: int) -> tuple[int, ...]:
    """What the table says of a prompt."""
    text = [0, *prompt]
    for _ in range(length):
        text.append(following(*text[-2:]))
    return tuple(text[-length:])


def record(case: Case) -> dict[str, Any]:
    """Run a case: hashes of each request's events, of the trees that were verified, and the counters."""
    speculators = case.speculators()
    runner = TableRunner(hidden_layers=_layers(speculators), one_kind_of_rows=case.one_kind_of_rows)
    limits = {"max_batch_size": case.batch, "prefill_chunk": 48, "idle_prefill_chunk": 80, **case.limits}
    engine = make_engine(runner, speculators, **limits)
    events: dict[int, list[Any]] = {}
    for number, request in enumerate(requests()):
        identity = _submit(engine, request, events)
        if number % 8 == 7:
            for _ in range(6):
                engine.step()
        if number == 23:
            engine.cancel(identity)
            engine.cancel(min(key for key, seen in events.items() if not seen or seen[-1][1] is None))
    while engine.step():
        pass
    check_empty(engine)
    counted = engine.statistics
    steps = [_trees(batch) for batch in runner.batches]
    return {
        "requests": [_hashed(events[key]) for key in sorted(events)],
        "steps": [
            _hashed(steps[first : first + _STEPS_A_HASH]) for first in range(0, len(steps), _STEPS_A_HASH)
        ],
        "counters": [
            *(counted.steps, counted.emitted_tokens, counted.request_steps, counted.reused_blocks),
            *(counted.drafted_tokens, counted.accepted_tokens),
            [count for count in counted.drafted_by_position if count],
            [count for count in counted.accepted_by_position if count],
        ],
    }


def _layers(speculators: Speculator | Sequence[Speculator]) -> Sequence[int]:
    each = [speculators] if isinstance(speculators, Speculator) else speculators
    return [layer for speculator in each for layer in speculator.requirements.hidden_layers]


def _submit(engine: Engine, request: GenerationRequest, events: dict[int, list[Any]]) -> int:
    seen: list[Any] = []

    def callback(event: RequestOutput) -> None:
        metrics = event.metrics
        counts = (metrics.num_output_tokens, metrics.total_draft_tokens, metrics.total_accepted_draft_tokens)
        log_probs = [round(value, 4) for value in event.log_probs]
        more = (metrics.steps, metrics.kv_new_blocks, metrics.kv_reused_blocks, event.text_cut)
        seen.append([list(event.tokens), event.finish_reason, counts, more, log_probs])

    identity = engine.submit(request, callback)
    events[identity] = seen
    return identity


def _trees(batch: Sequence[Any]) -> list[Any]:
    """What the target runs in a step."""
    return [
        [list(item.tokens), item.past, item.is_prompt, item.parents and list(item.parents), item.logits_from]
        for item in batch
    ]


def _hashed(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:10]


if __name__ == "__main__":
    found = {name: record(case) for name, case in CASES.items()}
    RECORD.write_text(
        json.dumps(found, indent=1).replace("\n   ", " ").replace("\n  ]", " ]") + "\n", "utf-8"
    )
