"""MLP speculators in vLLM: chains by the published equations, from the right states, of every published layout."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.vllm import mlp_speculator as module  # noqa: E402
from engine.vllm.mlp_speculator import MlpProposer  # noqa: E402
from speculators.formats.draft_vocabulary import write_draft_vocabulary  # noqa: E402
from speculators.mlp_speculator.checkpoint import load_checkpoint  # noqa: E402
from tests.speculators import equations, released  # noqa: E402

pytestmark = pytest.mark.torch
LONGEST, STAGES = 40, 3


@pytest.fixture(autouse=True)
def _no_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner's hidden states are handed over by hand; vLLM's own is met in the outside tests."""
    monkeypatch.setattr(module, "_show_hidden_states", lambda: None)


def proposer(directory: Path, *, length: int = STAGES, width: int = released.WIDTH) -> MlpProposer:
    """As vLLM makes it: only what it reads of the configuration and the target is there."""
    made = MlpProposer(
        SimpleNamespace(
            additional_config={"drafthouse": {"checkpoint": str(directory)}},
            speculative_config=SimpleNamespace(
                num_speculative_tokens=length, num_speculative_tokens_per_batch_size=None
            ),
            model_config=SimpleNamespace(
                max_model_len=LONGEST, dtype=torch.float32, get_hidden_size=lambda: width
            ),
        )
    )
    made.load_model(torch.nn.Linear(1, 1))
    return made


def proposed(made: MlpProposer, hidden: Any, emitted: list[list[int]], drafted: Any, texts: int = 9) -> Any:
    made.see(torch.from_numpy(hidden), drafted)
    return made.propose(emitted, np.full(len(emitted), texts), np.zeros((len(emitted), LONGEST), np.int32))


def states(rows: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, released.WIDTH)).astype(np.float32)


def chain(config: Any, weights: Any, hidden: Any, token: int, kept: Any = None) -> list[int]:
    """By the equations, one stage after the other."""
    tokens = [token]
    for _ in range(STAGES):
        fed = np.array([*tokens, *[0] * STAGES])
        logits = equations.mlp_speculator(config, weights, hidden.astype(np.float64), fed)[len(tokens) - 1]
        among = np.arange(len(logits)) if kept is None else kept
        tokens.append(int(among[logits[among].argmax()]))
    return tokens[1:]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("pickled", [False, True])
def test_chains_are_those_of_the_published_equations(
    tied: bool, scaled: bool, pickled: bool, tmp_path: Path
) -> None:
    config, weights = released.mlp_speculator(STAGES, tied=tied, scaled=scaled)
    directory = released.write(tmp_path, config, weights)
    if pickled:
        (directory / "model.safetensors").unlink()
        torch.save(
            {name: torch.from_numpy(values) for name, values in weights.items()},
            directory / "pytorch_model.bin",
        )
    hidden = states(4)
    expected = [chain(config, weights, hidden[row], 5 + row) for row in range(4)]
    assert proposed(proposer(directory), hidden, [[5], [6], [7], [8]], None) == expected


def test_tied_weights_may_be_stored_under_any_stage_and_without_prefix(tmp_path: Path) -> None:
    config, weights = released.mlp_speculator(STAGES, tied=True)
    kept = {"proj.0.weight", "emb.2.weight", "proj.2.weight", "ln.1.weight", "ln.2.bias", "head.1.weight"}
    bare = {name.removeprefix("speculator."): values for name, values in weights.items()}
    sparse = {name: values for name, values in bare.items() if name in kept}
    hidden = states(1)
    made = proposer(released.write(tmp_path, config, sparse))
    assert proposed(made, hidden, [[5]], None) == [chain(config, weights, hidden[0], 5)]


def test_beside_a_draft_vocabulary_its_tokens_alone_are_drafted(tmp_path: Path) -> None:
    config, weights = released.mlp_speculator(STAGES)
    kept = np.array([1, 4, 5, 9, 20, 33, 47])
    rows = {
        name: values[kept] if ".emb." in name or ".head." in name else values
        for name, values in weights.items()
    }
    directory = released.write(tmp_path, config, rows)
    write_draft_vocabulary(directory, kept)
    whole = {f"speculator.{name}": values for name, values in load_checkpoint(directory).tensors.items()}
    hidden = states(2)
    expected = [chain(config, whole, hidden[row], token, kept) for row, token in enumerate((5, 6))]
    assert proposed(proposer(directory), hidden, [[5], [6]], None) == expected, "6 has no embedding"


def test_each_request_drafts_from_its_last_accepted_state(tmp_path: Path) -> None:
    """Four requests: two of three drafts accepted, one still reading its prompt, none drafted, all drafts rejected."""
    config, weights = released.mlp_speculator(STAGES)
    made, hidden = proposer(released.write(tmp_path, config, weights)), states(4 + 1 + 1 + 3)
    found = proposed(made, hidden, [[3, 4, 5], [], [6], [7]], [3, 0, 0, 2])
    assert found == [
        chain(config, weights, hidden[2], 5),
        [],
        chain(config, weights, hidden[5], 6),
        chain(config, weights, hidden[6], 7),
    ]


def test_drafts_end_with_the_text_s_length(tmp_path: Path) -> None:
    config, weights = released.mlp_speculator(STAGES)
    made, hidden = proposer(released.write(tmp_path, config, weights)), states(1)
    whole = chain(config, weights, hidden[0], 5)
    for left in range(STAGES + 2):
        found = proposed(made, hidden, [[5]], None, texts=LONGEST - 1 - left)
        assert found == [whole[:left]]


def test_one_for_another_target_is_refused(tmp_path: Path) -> None:
    directory = released.write(tmp_path, *released.mlp_speculator(STAGES))
    with pytest.raises(ValueError, match="hidden states of width 16; the target's have 32"):
        proposer(directory, width=32)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    config, weights = released.mlp_speculator(STAGES)
    del weights["speculator.head.1.weight"]
    with pytest.raises(ValueError, match=r"no tensor head\.1\.weight"):
        proposer(released.write(tmp_path, config, weights))
