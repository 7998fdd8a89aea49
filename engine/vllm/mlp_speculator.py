"""MLP speculators as a proposer of one's own in vLLM (`method: custom_class`): the published checkpoints and the kit's.

vLLM has a class for them (`model_executor/models/mlp_speculator.py`) but nothing that drafts with it: the architecture
is taken out of its registry ("Temporarily disabled", `models/registry.py` of 0.24.0 and 0.32.0). A proposer of one's
own is shown tokens alone, so the runner's `propose_draft_token_ids` is wrapped to show it the hidden states as well;
which row of them is a request's is reckoned as that method does for Medusa heads. Verification is vLLM's own.

The equations are those of `speculators.mlp_speculator.model`; chains alone, of the most probable tokens. Beside a draft
vocabulary (`speculators.formats.draft_vocabulary`) embeddings of other tokens are zero, and none of them is drafted.
Every rank of a tensor-parallel target holds the whole speculator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.vllm.draft_length import DraftLength
from speculators.mlp_speculator.config import MlpSpeculatorConfig

KIT_KEY = "drafthouse"  # as in `engine.vllm.methods`
VOCABULARY_FILE, TOKEN_MAP = "draft_vocabulary.safetensors", "token_map"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_PREFIX = "speculator."
_EPSILON = 1e-6


class MlpProposer:
    """Drafts for the rows of a batch, each from the target's hidden state and the token that it made of it."""

    def __init__(self, vllm_config: Any) -> None:
        """Take the checkpoint's place from `additional_config`, which vLLM hands to the workers."""
        self._checkpoint = Path(vllm_config.additional_config[KIT_KEY]["checkpoint"])
        self._width = int(vllm_config.model_config.get_hidden_size())
        self._dtype = vllm_config.model_config.dtype
        self._length = DraftLength(vllm_config)
        self._hidden: Any = None
        self._drafted: Sequence[int] | None = None
        _show_hidden_states()

    def load_model(self, target: Any, *_: Any, **__: Any) -> None:
        """Load the stages to where the target is.

        Raises:
            ValueError: they are for another target.
        """
        config = MlpSpeculatorConfig.read(self._checkpoint)
        if config.emb_dim != self._width:
            raise ValueError(
                f"{self._checkpoint} is for hidden states of width {config.emb_dim}; the target's have {self._width}"
            )
        device = next(target.parameters()).device
        self._stages = Stages(config, _tensors(self._checkpoint), device, self._dtype)

    def see(self, hidden: Any, drafted: Sequence[int] | None) -> None:
        """Take in the hidden states of the step that is to be drafted after.

        Args:
            hidden: ``[R, E]``, of all tokens whose logits were wanted, request by request.
            drafted: how many of them were drafts, for each request; None: none.
        """
        self._hidden, self._drafted = hidden, drafted

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[Any],
        token_ids_cpu: NDArray[np.int32],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """One draft a row; an empty one where the row is still reading its prompt. Arguments as in `AnpdProposer`."""
        batch = len(sampled_token_ids)
        drafts: list[list[int]] = [[] for _ in range(batch)]
        rows, states, lengths, first = [], [], [], 0
        for row, emitted in enumerate(sampled_token_ids):
            if emitted and (length := self._length.most(batch, int(num_tokens_no_spec[row]))):
                rows.append(row)
                states.append(first + len(emitted) - 1)
                lengths.append(length)
            first += 1 + (self._drafted[row] if self._drafted is not None else 0)
        if rows:
            last = [sampled_token_ids[row][-1] for row in rows]
            found = self._stages.draft(self._hidden[states], last, max(lengths))
            for row, length, draft in zip(rows, lengths, found, strict=True):
                drafts[row] = draft[:length]
        self._hidden = None
        return drafts


class Stages:
    """The stages of a speculator, in PyTorch."""

    def __init__(
        self, config: MlpSpeculatorConfig, tensors: Mapping[str, Any], device: Any, dtype: Any
    ) -> None:
        """Take the tensors of a checkpoint, by their names in its files; `token_map` is its draft vocabulary."""
        import torch

        named = {name.removeprefix(_PREFIX): values for name, values in tensors.items()}
        self._config = config
        kept = named.pop(TOKEN_MAP, None)
        self._kept = None if kept is None else kept.to(device)
        self._places = None
        if (
            kept is not None
        ):  # of each token in the rows that are stored; the row behind them is of all others
            self._places = torch.full((config.vocab_size,), len(kept), device=device)
            self._places[self._kept] = torch.arange(len(kept), device=device)

        @functools.cache  # stages that share a matrix hold it once
        def moved(name: str) -> Any:
            values = named[name].to(device, dtype)
            if kept is not None and name.startswith("emb."):
                values = torch.cat([values, values.new_zeros(1, values.shape[1])])
            return values

        def of(part: str, stage: int, rest: str = "weight") -> Any:
            return moved(_stored(named, config, part, stage, rest))

        self._stages = [
            (of("emb", i), of("proj", i), of("ln", i), of("ln", i, "bias"), of("head", i))
            for i in range(config.n_predict)
        ]

    def draft(self, hidden: Any, tokens: Sequence[int], length: int) -> list[list[int]]:
        """Chains of `length` tokens.

        Args:
            hidden: ``[B, E]``, after the target's final norm.
            tokens: the token that was sampled from each.
            length: at most as many as there are stages.
        """
        import torch
        from torch.nn import functional

        config = self._config
        ratio = config.embedding_weight / config.state_weight
        with torch.inference_mode():
            state = hidden.to(self._stages[0][1].dtype)
            if config.scale_input:
                state = _normalised(state) / math.sqrt(2)
            last = torch.tensor(tokens, device=state.device)
            found = []
            for embedding, projection, scale, shift, head in self._stages[:length]:
                rows = last if self._places is None else self._places[last]
                state = functional.linear(state, projection) + ratio * embedding[rows]
                state = functional.gelu(scale * _normalised(state) + shift)
                last = functional.linear(state, head).argmax(-1)
                last = last if self._kept is None else self._kept[last]
                found.append(last)
            drafts: list[list[int]] = torch.stack(found, 1).tolist()
        return drafts


def _normalised(values: Any) -> Any:
    return values * (values.pow(2).mean(-1, keepdim=True) + _EPSILON).rsqrt()


def _stored(named: Mapping[str, Any], config: MlpSpeculatorConfig, part: str, stage: int, rest: str) -> str:
    """Under which name a stage's tensor is: with tied weights one copy stands under the name of any that shares it."""
    sharing = range(config.n_predict)
    if part == "proj":
        sharing = range(stage, stage + 1) if stage == 0 else range(1, config.n_predict)
    own = f"{part}.{stage}.{rest}"
    names = [own, *(f"{part}.{other}.{rest}" for other in sharing)] if config.tie_weights else [own]
    found = next((name for name in names if name in named), None)
    if found is None:
        raise ValueError(f"the MLP speculator has no tensor {own}")
    return found


def _tensors(directory: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    path = next((directory / name for name in WEIGHT_FILES if (directory / name).is_file()), None)
    if path is None:
        raise ValueError(f"{directory} has no {' or '.join(WEIGHT_FILES)}")
    read = load_file if path.suffix == ".safetensors" else functools.partial(torch.load, weights_only=True)
    tensors: dict[str, Any] = dict(read(path))
    if (directory / VOCABULARY_FILE).is_file():
        tensors[TOKEN_MAP] = load_file(directory / VOCABULARY_FILE)[TOKEN_MAP]
    return tensors


def _show_hidden_states() -> None:
    """Have the runner, whose module has been imported by whoever makes a proposer, show it its hidden states."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    shown = GPUModelRunner.propose_draft_token_ids
    if hasattr(shown, "__wrapped__"):
        return

    @functools.wraps(shown)
    def propose_draft_token_ids(
        self: Any,
        scheduler_output: Any,
        sampled_token_ids: Any,
        sampling_metadata: Any,
        hidden_states: Any,
        sample_hidden_states: Any,
        aux_hidden_states: Any,
        spec_decode_metadata: Any,
        *more: Any,
    ) -> Any:
        if isinstance(self.drafter, MlpProposer):
            drafted = None if spec_decode_metadata is None else spec_decode_metadata.num_draft_tokens
            self.drafter.see(sample_hidden_states, drafted)
        return shown(
            self,
            scheduler_output,
            sampled_token_ids,
            sampling_metadata,
            hidden_states,
            sample_hidden_states,
            aux_hidden_states,
            spec_decode_metadata,
            *more,
        )

    GPUModelRunner.propose_draft_token_ids = propose_draft_token_ids
