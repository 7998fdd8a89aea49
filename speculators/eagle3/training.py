"""EAGLE-3 in training: training-time test over a reduced draft vocabulary (arXiv 2503.01840).

Depth d reads the layer's own output of depth d - 1, and tokens shifted by d. Loss: cross-entropy against the target's
distribution over the draft vocabulary, depth d weighted by 0.8^(d - 1).

The published recipe starts from random numbers and needs millions of conversations. Here the drafter starts as a linear
prediction of the target's next final state: `fc` by ridge regression on cached features, norm and output matrix the
target's, and a layer that adds nothing yet. Some channels of hidden states are a thousand times larger than others,
which Adam's equal steps cannot follow; so features are divided by the root mean square of their channel, and `fc` takes
that over when it is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from speculators.eagle.checkpoint import EMBEDDING
from speculators.eagle.layers import DecoderLayer
from speculators.eagle3.checkpoint import OUTPUT, Eagle3Checkpoint, save_checkpoint, vocabulary_maps
from speculators.eagle3.config import Eagle3Config
from speculators.eagle3.model import Eagle3, Eagle3Layer, FusedDrafter
from speculators.formats.checkpoint import Checkpoint
from speculators.formats.tensors import Tensors, as_dtype, numpy_array, torch_tensor
from speculators.formats.torch_modules import load_arrays
from speculators.training.features import Batch
from speculators.training.target import FrozenTarget
from speculators.training.trainee import Trainee
from speculators.training.unrolled import Roots, UnrolledAttention

_SPREAD = 0.02
_RIDGE = 0.01
# A prediction is shorter than what it predicts, and the norm would stretch it to full length.
_CONFIDENCE = 0.5
_SMALLEST_SCALE = 1e-6

Model = TypeVar("Model", bound=FusedDrafter[Any])


@dataclass(frozen=True, slots=True)
class FusedBeginning:
    """What a drafter that reads fused hidden states starts from, and how it is judged.

    Attributes:
        target: the frozen target.
        layers: its hidden states that are read.
        kept: the draft vocabulary, target ids, ascending.
        examples: states of conversations, ``[tokens, F + 1, H]``, from which scale and `fc` are estimated.
        depth: the number of depths that are measured.
        decay: weight of a depth's loss by that of the depth before.
        soft: learn the target's distribution, not only its token.
        start: the checkpoint that training begins from, of the drafter's own kind (P-EAGLE: or EAGLE-3's); None: it is
            made anew.
    """

    target: FrozenTarget
    layers: tuple[int, ...]
    kept: torch.Tensor
    examples: Sequence[torch.Tensor]
    depth: int
    decay: float
    soft: bool
    start: Checkpoint[Any] | None = None

    def features(self) -> torch.Tensor:
        """All rows of the examples without the final state, float32 ``[rows, F H]``."""
        return torch.cat([states[:, :-1].flatten(1) for states in self.examples]).float()


class FusedTrainee(Trainee, Generic[Model]):
    """A drafter that reads fused hidden states, and where it starts from."""

    _embedding: torch.Tensor
    _feature_scale: torch.Tensor

    def __init__(self, beginning: FusedBeginning, model: Model) -> None:
        target = beginning.target
        super().__init__(target.lm_head, beginning.kept, soft=beginning.soft, decay=beginning.decay)
        self.layers, self.depth = beginning.layers, beginning.depth
        stored = {} if beginning.start is None else beginning.start.tensors
        self._has_embedding = EMBEDDING in stored
        embedding = torch_tensor(stored[EMBEDDING]) if self._has_embedding else target.embedding.detach()
        self.register_buffer("_embedding", embedding.to(target.device, torch.bfloat16), persistent=False)
        scale = beginning.features().pow(2).mean(0).sqrt()
        if model.config.norm_before_fc or model.config.fc_norm:  # which would norm the scale away
            scale = torch.ones_like(scale)
        self.register_buffer("_feature_scale", scale.clamp(min=_SMALLEST_SCALE * float(scale.max())))
        self.model = model
        if beginning.start is None:
            self._initialize(target, beginning.examples)
        else:
            self._take_over(beginning.start.tensors, target)

    def fused(self, batch: Batch) -> torch.Tensor:
        """Hidden states as the first layer reads them, float32 ``[B, T, H]``."""
        # Sums along the residual stay in float32; autocast does the matrix products in bfloat16.
        return self.model.fuse(batch.fused.flatten(2).float() / self._feature_scale).float()

    def published(self) -> Tensors:
        """The weights, `fc` with the scale of the features in it, and the embedding where the start had one."""
        found = self.model.to_checkpoint().tensors
        if self._has_embedding:
            found[EMBEDDING] = numpy_array(self._embedding)
        return {**found, "fc.weight": found["fc.weight"] / self._feature_scale.numpy()}

    def _decoders(self) -> Sequence[Eagle3Layer | DecoderLayer]:
        """The layers, which are to add nothing at first."""
        raise NotImplementedError

    def _take_over(self, tensors: Tensors, target: FrozenTarget) -> None:
        """Take the weights of a checkpoint; an output matrix that is not stored is the target's."""
        own = {name: values for name, values in tensors.items() if name != EMBEDDING}
        if OUTPUT not in own:
            own[OUTPUT] = numpy_array(target.lm_head)
        load_arrays(self.model, own)
        with torch.no_grad():
            self.model.fc.weight.mul_(self._feature_scale.cpu())

    def _spread(self) -> None:
        """Random weights, and layers that add nothing."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, 0.0, _SPREAD)
                else:
                    nn.init.ones_(parameter)
            for layer in self._decoders():
                nn.init.zeros_(layer.self_attn.o_proj.weight)
                nn.init.zeros_(layer.mlp.down_proj.weight)

    def _initialize(self, target: FrozenTarget, examples: Sequence[torch.Tensor]) -> None:
        model, final_norm = self.model, target.model.get_decoder().norm.weight
        self._spread()
        with torch.no_grad():
            model.norm.weight.copy_(final_norm * _CONFIDENCE)
            model.lm_head.weight.copy_(target.lm_head[self._kept])
            model.fc.weight.copy_(self._regression(examples, final_norm.cpu()))
            if model.config.has_vocabulary_map:
                for name, values in vocabulary_maps(self._kept.numpy(), target.vocab_size).items():
                    getattr(model, name).copy_(torch_tensor(values))

    def _regression(self, examples: Sequence[torch.Tensor], final_norm: torch.Tensor) -> torch.Tensor:
        """``[H, F H]``: the linear map from scaled features to the next final state without the norm's weight."""
        inputs = torch.cat([states[:-1, :-1].flatten(1) for states in examples]).float().cpu()
        inputs = inputs / self._feature_scale.cpu()
        wanted = torch.cat([states[1:, -1] for states in examples]).float().cpu() / final_norm
        square = inputs.T @ inputs + _RIDGE * len(inputs) * torch.eye(inputs.shape[1])
        return torch.as_tensor(torch.linalg.solve(square, inputs.T @ wanted).T)


class Eagle3Trainee(FusedTrainee[Eagle3]):
    """The drafter and what it learns."""

    def __init__(self, beginning: FusedBeginning, *, unroll: int) -> None:
        """`unroll` is the number of depths that are trained."""
        config = beginning.start.config if beginning.start else Eagle3Config(**drafter_keys(beginning))
        super().__init__(beginning, Eagle3(config.reading(outputs_of(beginning.layers))))
        self._unroll = min(unroll, beginning.depth)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Trainee.forward`."""
        layer, rows = self.model.midlayer, self.rows(batch)
        depths = self._unroll if self.training else self.depth
        roots = Roots.reaching(batch.learned, depths)
        attention = UnrolledAttention(layer.self_attn, roots)
        hidden = self.fused(batch)
        embedded = layer.input_layernorm(self._embedding[batch.tokens].float())
        total, table = hidden.new_zeros(()), []
        for depth in range(1, depths + 1):
            ahead = torch.roll(embedded, -depth, dims=1)  # what wraps around lies behind every learned row
            if depth == 1:
                hidden = run_first(layer, attention.read, hidden, ahead, roots)
            else:
                hidden = run_first(layer, attention.go_on, hidden, roots.of(ahead))
            normed = self.model.norm(hidden)
            loss, hits = self.judge(normed, self.model.lm_head.weight, batch, rows, depth, roots)
            if self.model.config.norm_output:
                hidden = normed
            total = total + loss
            table.append(hits)
        return total, torch.stack(table)

    def save(self, directory: Path) -> None:
        """See `Trainee.save`."""
        save_checkpoint(
            Eagle3Checkpoint(self.model.config, as_dtype(self.published(), "bfloat16")), directory
        )

    def _decoders(self) -> Sequence[Eagle3Layer | DecoderLayer]:
        return [self.model.midlayer]


def run_first(
    layer: Eagle3Layer,
    attention: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    embedded: torch.Tensor,
    roots: Roots | None = None,
) -> torch.Tensor:
    """The next depth through the layer that reads token embedding and hidden state, float ``[B, rows, H]``.

    Args:
        layer: the layer.
        attention: its own, of this depth.
        hidden, embedded: what the rows read; the latter is normed.
        roots: the rows that `attention` gives back, where those are not all.
    """
    normed = layer.hidden_norm(hidden)
    attended = attention(torch.cat([embedded, normed], dim=-1))
    residual = normed if layer.norm_before_residual else hidden
    values = (residual if roots is None else roots.of(residual)) + attended
    return torch.as_tensor(values + layer.mlp(layer.post_attention_layernorm(values)))


def drafter_keys(beginning: FusedBeginning) -> dict[str, Any]:
    """Of the config of a drafter whose layers are of the target's size."""
    target, source = beginning.target, beginning.target.config
    rope = dict(source.rope_parameters)
    theta = float(rope.pop("rope_theta"))
    return {
        "vocab_size": target.vocab_size,
        "draft_vocab_size": len(beginning.kept),
        "hidden_size": target.hidden_size,
        "intermediate_size": source.intermediate_size,
        "num_attention_heads": source.num_attention_heads,
        "num_key_value_heads": source.num_key_value_heads,
        "head_dim": getattr(source, "head_dim", None),
        "rms_norm_eps": source.rms_norm_eps,
        "rope_theta": theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "max_position_embeddings": source.max_position_embeddings,
    }


def outputs_of(layers: Sequence[int]) -> list[int]:
    """The layers that hidden states come out of: state i is what goes into layer i."""
    return [layer - 1 for layer in layers]
