"""P-EAGLE in training: all depths of a block at every position of a conversation (arXiv 2602.01469).

Depth d stands d - 1 masks behind the row of a position, and sees the text up to that row and the masks between. The
paper keeps a share r^(d - 1) of the positions at depth d, for memory; here all are kept and the loss has that weight,
which is the same on average. It starts where EAGLE-3 does (`speculators.eagle3.training`), at a mask from the mean of
the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from speculators.eagle.layers import DecoderLayer
from speculators.eagle3.model import Eagle3Layer
from speculators.eagle3.training import FusedBeginning, FusedTrainee, drafter_keys, outputs_of, run_first
from speculators.formats.tensors import as_dtype
from speculators.peagle.checkpoint import MASK_HIDDEN, PEagleCheckpoint, save_checkpoint
from speculators.peagle.config import PEagleConfig
from speculators.peagle.model import PEagle
from speculators.training.features import Batch
from speculators.training.unrolled import UnrolledAttention


class PEagleTrainee(FusedTrainee[PEagle]):
    """The drafter and what it learns; the token embedding stays the target's."""

    def __init__(self, beginning: FusedBeginning, *, decoders: int, mask_token: int) -> None:
        """`decoders` (layers) and `mask_token` (one that no text has) are of a drafter that is made anew."""
        if beginning.start is None:
            config = PEagleConfig(
                **drafter_keys(beginning),
                num_hidden_layers=decoders,
                mask_token_id=mask_token,
                embed_requires_grad=False,
            )
        else:
            config = beginning.start.config
        model = PEagle(config.reading(outputs_of(beginning.layers)))
        super().__init__(beginning, model)
        with torch.no_grad():
            if beginning.start is None:
                model.mask_hidden.copy_(beginning.features().mean(0).cpu())
            model.mask_hidden.div_(self._feature_scale.cpu())

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Trainee.forward`."""
        model, rows = self.model, self.rows(batch)
        attentions = [UnrolledAttention(layer.self_attn) for layer in self._decoders()]
        norm = model.first_layer.input_layernorm
        hidden = self.fused(batch)
        following = torch.roll(batch.tokens, -1, dims=1)  # what wraps around lies behind every learned row
        embedded = norm(self._embedding[following].float())
        total, table = hidden.new_zeros(()), []
        for depth in range(1, self.depth + 1):
            if depth == 2:
                hidden = model.fuse(model.mask_hidden).float().expand_as(hidden)
                embedded = norm(self._embedding[model.config.mask_token_id].float()).expand_as(hidden)
            values = self._run(hidden, embedded, attentions)
            loss, hits = self.judge(model.norm(values), model.lm_head.weight, batch, rows, depth)
            total = total + loss
            table.append(hits)
        return total, torch.stack(table)

    def save(self, directory: Path) -> None:
        """See `Trainee.save`."""
        tensors = self.published()
        tensors[MASK_HIDDEN] = tensors[MASK_HIDDEN] * self._feature_scale.numpy()
        save_checkpoint(PEagleCheckpoint(self.model.config, as_dtype(tensors, "bfloat16")), directory)

    def _run(
        self, hidden: torch.Tensor, embedded: torch.Tensor, attentions: Sequence[UnrolledAttention]
    ) -> torch.Tensor:
        """The next depth through all layers, float ``[B, T, H]`` in and out; `embedded` is normed."""
        values = run_first(self.model.first_layer, attentions[0], hidden, embedded)
        for layer, attention in zip(self.model.further_layers, attentions[1:], strict=True):
            values = values + attention(layer.input_layernorm(values))
            values = values + layer.mlp(layer.post_attention_layernorm(values))
        return values

    def _decoders(self) -> Sequence[Eagle3Layer | DecoderLayer]:
        return [self.model.first_layer, *self.model.further_layers]
