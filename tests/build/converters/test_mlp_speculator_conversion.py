"""Why an MLP speculator is no TensorRT-LLM drafter, shown in numbers, and what the refusal says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from build.converters.dispatch import convert_drafter
from build.converters.errors import ConversionError
from tests.build.converters import targets
from tests.speculators import equations, released

RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.standard_normal(released.WIDTH)


def stage_logits(weights: released.Weights, hidden: np.ndarray, tokens: list[int]) -> np.ndarray:
    config, _ = released.mlp_speculator(stages=2)
    return np.asarray(equations.mlp_speculator(config, weights, hidden, np.array(tokens)))


def ablated(part: str) -> released.Weights:
    _, weights = released.mlp_speculator(stages=2)
    return {name: np.zeros_like(values) if part in name else values for name, values in weights.items()}


def test_its_first_stage_depends_on_the_token_which_medusa_does_not_see() -> None:
    _, weights = released.mlp_speculator(stages=2)
    assert np.abs(stage_logits(weights, HIDDEN, [1, 2]) - stage_logits(weights, HIDDEN, [3, 2])).max() > 0.1


def test_without_tokens_it_does_not_depend_on_length_and_silu_blocks_do() -> None:
    weights = ablated(".emb.")
    near, far = (stage_logits(weights, HIDDEN * scale, [0, 0]) for scale in (1.0, 100.0))
    np.testing.assert_allclose(near, far, rtol=1e-4, atol=1e-4)
    assert np.abs(near - stage_logits(weights, -HIDDEN, [0, 0])).max() > 0.1  # it is not constant
    _, heads = released.medusa()
    near, far = (equations.medusa(heads, 3, 1, HIDDEN * scale) for scale in (1.0, 100.0))
    assert np.abs(near - far).max() > 1
    config, head = released.redrafter()
    embedded = RANDOM.standard_normal((2, released.WIDTH))
    near, far = (equations.redrafter(config, head, HIDDEN * scale, embedded) for scale in (1.0, 100.0))
    assert np.abs(near - far).max() > 1


def test_only_where_no_unit_bends_do_linear_heads_rank_tokens_alike() -> None:
    """All units far on the identity side of GELU, and a head that does not see the shift."""
    weights = ablated(".emb.")
    shift = np.full(24, 50.0, np.float32)
    weights["speculator.ln.0.bias"] = shift
    head = weights["speculator.head.0.weight"]
    weights["speculator.head.0.weight"] = head - head.mean(axis=1, keepdims=True)
    linear = (
        weights["speculator.head.0.weight"]
        * weights["speculator.ln.0.weight"]
        @ weights["speculator.proj.0.weight"]
    )
    logits, scores = stage_logits(weights, HIDDEN, [0, 0])[0], linear @ HIDDEN
    np.testing.assert_array_equal(np.argsort(logits), np.argsort(scores))
    assert np.abs(logits - scores).max() > 0.1  # equal in rank, not in logits
    weights["speculator.ln.0.bias"] = np.zeros_like(shift)
    assert np.argsort(stage_logits(weights, HIDDEN, [0, 0])[0]).tolist() != np.argsort(scores).tolist()


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "read the drafted tokens, which Medusa heads do not see, and divide by the norm"),
        ([".emb."], "ignores tokens as Medusa does, but divides by the norm"),
        ([".proj.0."], "table of tokens, for which ReDrafter would need blocks as wide as the vocabulary"),
        ([".emb.", ".proj.0."], "ignores hidden state and tokens"),
    ],
)
def test_the_refusal_says_why_and_names_what_to_train(parts: list[str], reason: str, tmp_path: Path) -> None:
    config, weights = released.mlp_speculator(stages=2)
    for part in parts:
        weights = {
            name: np.zeros_like(values) if part in name else values for name, values in weights.items()
        }
    source = released.write(tmp_path / "drafter", config, weights)
    for target in (targets.huggingface(tmp_path / "hf"), targets.engine_checkpoint(tmp_path / "engine")):
        with pytest.raises(
            ConversionError, match=rf"{reason}.*`drafthouse train`.*eagle3.*redrafter.*medusa"
        ):
            convert_drafter("mlp_speculator", source, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_target_is_told_apart_first(tmp_path: Path) -> None:
    source = released.write(tmp_path / "drafter", *released.mlp_speculator())
    with pytest.raises(ConversionError, match=r"width 16; .* hidden_size 32: it is another target"):
        convert_drafter(
            "mlp_speculator", source, targets.huggingface(tmp_path / "t", hidden_size=32), tmp_path / "out"
        )
