"""P-EAGLE in training: all depths of a block at every position of a conversation (arXiv 2602.01469).

Depth d stands d - 1 masks behind the row of a position, and sees the text up to that row and the masks between. The
paper keeps a share r^(d - 1) of the positions at depth d, for memory; here all are kept and the loss has that weight,
which is the same on average. It starts where EAGLE-3 does (`speculators.eagle3.training`), or from EAGLE-3's own
checkpoint, at a mask from the mean of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from speculators.eagle.layers import DecoderLayer
from speculators.eagle3.checkpoint import OUTPUT
from speculators.eagle3.config import Eagle3Config
from speculators.eagle3.model import Eagle3Layer
from speculators.eagle3.training import FusedBeginning, FusedTrainee, drafter_keys, outputs_of, run_first
from speculators.formats.tensors import Tensors, as_dtype, numpy_array
from speculators.peagle.checkpoint import MASK_HIDDEN, PEagleCheckpoint, current_name, save_checkpoint
from speculators.peagle.config import PEagleConfig, widened
from speculators.peagle.model import PEagle
from speculators.training.features import Batch
from speculators.training.target import FrozenTarget
from speculators.training.unrolled import Roots, UnrolledAttention


class PEagleTrainee(FusedTrainee[PEagle]):
    """The drafter and what it learns; the token embedding stays the target's."""

    def __init__(self, beginning: FusedBeginning, *, decoders: int, mask_token: int) -> None:
        """`decoders` (layers) and `mask_token` (one that no text has) are of a drafter made anew, or from EAGLE-3's."""
        start = beginning.start
        if start is not None and isinstance(start.config, PEagleConfig):
            config = start.config
        else:
            plain = Eagle3Config(**drafter_keys(beginning)) if start is None else start.config
            config = widened(plain, num_hidden_layers=decoders, mask_token_id=mask_token)
        model = PEagle(config.reading(outputs_of(beginning.layers)))
        super().__init__(beginning, model)
        with torch.no_grad():
            if start is None or MASK_HIDDEN not in start.tensors:
                model.mask_hidden.copy_(beginning.features().mean(0).cpu())
            model.mask_hidden.div_(self._feature_scale.cpu())

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Trainee.forward`."""
        model, rows = self.model, self.rows(batch)
        roots = Roots.reaching(batch.learned, self.depth)
        attentions = [UnrolledAttention(layer.self_attn, roots) for layer in self._decoders()]
        norm = model.first_layer.input_layernorm
        following = torch.roll(batch.tokens, -1, dims=1)  # what wraps around lies behind every learned row
        values = self._read(self.fused(batch), norm(self._embedding[following].float()), attentions, roots)
        mask = model.fuse(model.mask_hidden).float().expand_as(values)
        embedded = norm(self._embedding[model.config.mask_token_id].float()).expand_as(values)
        total, table = values.new_zeros(()), []
        for depth in range(1, self.depth + 1):
            if depth > 1:
                values = self._go_on(mask, embedded, attentions)
            loss, hits = self.judge(model.norm(values), model.lm_head.weight, batch, rows, depth, roots)
            total = total + loss
            table.append(hits)
        return total, torch.stack(table)

    def save(self, directory: Path) -> None:
        """See `Trainee.save`."""
        tensors = self.published()
        tensors[MASK_HIDDEN] = tensors[MASK_HIDDEN] * self._feature_scale.numpy()
        save_checkpoint(PEagleCheckpoint(self.model.config, as_dtype(tensors, "bfloat16")), directory)

    def _read(
        self,
        hidden: torch.Tensor,
        embedded: torch.Tensor,
        attentions: Sequence[UnrolledAttention],
        roots: Roots,
    ) -> torch.Tensor:
        """Depth 1 through all layers, float ``[B, T, H]`` in, ``[B, R, H]`` of the roots out; `embedded` is normed.

        The last layer is asked for the roots alone: of other rows nothing but its keys is read any more.
        """
        first, further = self.model.first_layer, self.model.further_layers
        if not further:
            return run_first(first, attentions[0].read, hidden, embedded, roots)
        values = run_first(first, attentions[0].read_all, hidden, embedded)
        for layer, attention in zip(further[:-1], attentions[1:-1], strict=True):
            values = _run_further(layer, values, attention.read_all(layer.input_layernorm(values)))
        attended = attentions[-1].read(further[-1].input_layernorm(values))
        return _run_further(further[-1], roots.of(values), attended)

    def _go_on(
        self, hidden: torch.Tensor, embedded: torch.Tensor, attentions: Sequence[UnrolledAttention]
    ) -> torch.Tensor:
        """The next depth through all layers, float ``[B, R, H]`` in and out; `embedded` is normed."""
        values = run_first(self.model.first_layer, attentions[0].go_on, hidden, embedded)
        for layer, attention in zip(self.model.further_layers, attentions[1:], strict=True):
            values = _run_further(layer, values, attention.go_on(layer.input_layernorm(values)))
        return values

    def _take_over(self, tensors: Tensors, target: FrozenTarget) -> None:
        """Of EAGLE-3's checkpoint the layer is the first one; those behind it add nothing at first."""
        if MASK_HIDDEN not in tensors:
            self._spread()
            made = {
                name: numpy_array(values)
                for name, values in self.model.state_dict().items()
                if name != OUTPUT
            }
            tensors = made | {current_name(name): values for name, values in tensors.items()}
        super()._take_over(tensors, target)

    def _decoders(self) -> Sequence[Eagle3Layer | DecoderLayer]:
        return [self.model.first_layer, *self.model.further_layers]


def _run_further(layer: DecoderLayer, values: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    values = values + attended
    return torch.as_tensor(values + layer.mlp(layer.post_attention_layernorm(values)))
