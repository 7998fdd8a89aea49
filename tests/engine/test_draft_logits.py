"""Acceptance by draft logits is exact, with TensorRT-LLM's rule: what comes out is distributed as the target's own."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.request import SamplingParams
from engine.serving.draft_logits import drawing, held_against

TARGET = np.array([2.0, 1.0, 0.5, -1.0, 0.0], np.float32)
DRAFT = np.array([0.0, 2.0, 0.5, 1.0, -2.0], np.float32)


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) / temperature)
    return np.asarray(weights / weights.sum())


def emitted(
    drawn_from: NDArray[np.float64], told: NDArray[np.float32], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Chances of the first token that `acceptDraftTokens` and `multinomialSampling` emit, computed, not drawn.

    Args:
        drawn_from: chances of each draft token.
        told: the row of draft_logits.
        wanted: the target's distribution.
    """
    believed = softmax(told)
    rest = np.maximum(wanted - believed, 0)
    rest = rest / rest.sum() if rest.any() else wanted
    kept = np.minimum(1, wanted / np.maximum(believed, 1e-300))
    return np.asarray(drawn_from * kept + (drawn_from * (1 - kept)).sum() * rest)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 2])
def test_what_is_emitted_is_the_targets_own(temperature: float, top_k: int, fast: bool) -> None:
    asked = SamplingParams(temperature, top_k=top_k, seed=5)
    drawn = drawing(asked, 3, fast=fast)
    # Fast logits stay in the engines, which see the draft's as they are.
    told = DRAFT if fast else held_against(DRAFT[None], 1, drawn, fast=False)[0]
    assert (drawn.top_k, drawn.top_p) == (0, 1.0)
    wanted = softmax(TARGET, temperature)
    if top_k:
        wanted[np.argsort(wanted)[:-top_k]] = 0
        wanted /= wanted.sum()
    chances = emitted(softmax(DRAFT, drawn.temperature), told, wanted)
    assert chances == pytest.approx(wanted, abs=1e-6)


def test_the_same_draft_with_other_logits_would_not_be() -> None:
    """As NVIDIA's BLS does it: drawn at the request's temperature, told as if at 1."""
    wanted = softmax(TARGET, 0.5)
    assert np.abs(emitted(softmax(DRAFT, 0.5), DRAFT, wanted) - wanted).max() > 0.05


def test_a_greedy_draft_is_the_likeliest_token_and_its_logits_stay() -> None:
    drawn = drawing(SamplingParams(), 0, fast=False)
    assert drawn.greedy
    rows = np.stack([DRAFT, TARGET, DRAFT])
    assert held_against(rows, 2, drawn, fast=False).tolist() == rows[:2].tolist()


def test_small_temperatures_stay_finite_in_half_precision() -> None:
    drawn = drawing(SamplingParams(1e-4), 0, fast=False)
    told = held_against(np.array([[30.0, 29.0, -30.0]], np.float16), 1, drawn, fast=False)
    assert told.dtype == np.float16 and told[0, 0] == 0 and not np.isnan(told).any()


def test_every_draft_has_numbers_of_its_own() -> None:
    asked = SamplingParams(1.0, seed=9)
    seeds = {drawing(asked, done, fast=False).seed for done in range(50)}
    assert len(seeds) == 50
    verifying = {int(np.random.SeedSequence([9, done]).generate_state(1, np.uint64)[0]) for done in range(50)}
    assert not seeds & verifying
