"""`drafthouse bench --context`: every combination in every round, and what bounds it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from engine.manifest import EngineError
from planner.bench.contexts import BATCHES, TOKENS, ContextCosts, context_table, measure_contexts
from tests.tiny import TinyTargets


@pytest.fixture(scope="module")
def costs(tiny_targets: TinyTargets) -> ContextCosts:
    return measure_contexts(tiny_targets.engine("llama", "int8"), contexts=(40, 100), rounds=2)


def test_every_combination_is_measured_in_every_round(costs: ContextCosts) -> None:
    assert set(costs.rounds) == {
        (context, batch, tokens) for context in (40, 100) for batch in BATCHES for tokens in TOKENS
    }
    assert all(len(figures) == 2 and min(figures) > 0 for figures in costs.rounds.values())
    assert len(costs.bandwidth) == 2


def test_the_bound_is_weights_and_cache_read_once() -> None:
    costs = ContextCosts("e", 10**9, 10**4, [9.0, 10.0, 11.0], {}, {})
    assert costs.bound_ms(10**5, 1) == pytest.approx(200.0)
    assert costs.bound_ms(10**5, 4) == pytest.approx(500.0)


def test_ratios_are_taken_within_a_round() -> None:
    rounds = {(256, 1, 1): [1.0, 10.0, 2.0], (256, 1, 8): [2.0, 20.0, 8.0]}
    assert ContextCosts("e", 1, 1, [1.0], rounds, {}).ratio(256, 1, 8) == 2.0


def test_contexts_that_do_not_fit_are_refused(tiny_targets: TinyTargets) -> None:
    with pytest.raises(EngineError, match=r"contexts must be 1 to 224 tokens; .* was compiled for 256"):
        measure_contexts(tiny_targets.engine("llama", "int8"), contexts=(40, 225), rounds=1)


def test_the_table_fits_80_columns_and_the_document_has_the_raw_figures(costs: ContextCosts) -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(context_table(costs))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "…" not in out.getvalue()
    document = json.loads(costs.to_json())
    assert len(document["steps"]) == len(costs.rounds)
    assert all(step["bound_ms"] >= 0 and len(step["ms"]) == 2 for step in document["steps"])


def test_the_size_of_a_token_is_that_of_the_cache(tiny_targets: TinyTargets) -> None:
    engine = tiny_targets.runner("llama", "int8")
    kernel = engine.graph.kernel  # type: ignore[attr-defined]
    costs = measure_contexts(Path(tiny_targets.engine("llama", "int8")), contexts=(40,), rounds=1)
    if kernel.name == "native":
        shape = kernel.cache.shape
        assert costs.token_bytes * shape.blocks * 32 == kernel.cache.memory.nbytes
    else:
        assert costs.token_bytes * kernel.caches.shape[1] * 32 == kernel.caches.nbytes
