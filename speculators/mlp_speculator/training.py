"""The MLP speculator in training: two stages of data, cross-entropy of all stages of the head (arXiv 2404.19124).

The published scheme aligns first to the inputs (every token of long texts), then to the outputs (tokens that the target
wrote); which tokens count is the batch's business (`Batch.learned`). Embedding and output cover the draft vocabulary
only; a token outside it enters as zero. Embedding and output start from the target's, brought to the variance 1/D of
the published starting point: random rows would each have to be met often to be learned.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from speculators.formats.draft_vocabulary import write_draft_vocabulary
from speculators.formats.tensors import as_dtype
from speculators.mlp_speculator.checkpoint import MlpSpeculatorCheckpoint, save_checkpoint, save_rows
from speculators.mlp_speculator.config import MlpSpeculatorConfig
from speculators.mlp_speculator.model import MlpSpeculator
from speculators.training.features import Batch
from speculators.training.target import FrozenTarget
from speculators.training.trainee import Trainee


class MlpSpeculatorTrainee(Trainee):
    """The head and what it learns."""

    _vocab_size: int

    def __init__(
        self,
        target: FrozenTarget,
        kept: torch.Tensor,
        *,
        depth: int,
        soft: bool,
        use_state: bool = True,
        use_tokens: bool = True,
        start: MlpSpeculatorCheckpoint | None = None,
    ) -> None:
        """`use_state` and `use_tokens` leave out one of the two inputs, to measure what it is worth.

        `start` is the checkpoint that training begins from, its embedding and output in the rows of `kept`.
        """
        super().__init__(target.lm_head, kept, soft=soft, decay=1.0)
        self.depth, self._vocab_size = depth, target.vocab_size
        self._use_state, self._use_tokens = use_state, use_tokens
        if start is not None:
            self.model = MlpSpeculator.from_checkpoint(start)
            return
        config = MlpSpeculatorConfig(
            vocab_size=len(kept),
            emb_dim=target.hidden_size,
            n_predict=depth,
            top_k_tokens_per_head=[5, 4, 3, *[2] * depth][:depth],
            tie_weights=True,
            scale_input=True,
        )
        self.model = MlpSpeculator(config)
        self.model.initialize()
        with torch.no_grad():
            torch.as_tensor(self.model.emb[0].weight).copy_(_unit(target.embedding[kept]))
            torch.as_tensor(self.model.head[0].weight).copy_(_unit(target.lm_head[kept]))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Trainee.forward`."""
        model, rows = self.model, self.rows(batch)
        ids = self._draft_ids[batch.tokens]
        state = model.first_state(batch.final.float()) * float(self._use_state)
        total, table = state.new_zeros(()), []
        for stage in range(self.depth):
            tokens = torch.roll(ids, -stage - 1, dims=1)
            known = (tokens >= 0)[..., None] & self._use_tokens
            embedding, output = (torch.as_tensor(part[stage].weight) for part in (model.emb, model.head))
            state = model.advance(stage, state, embedding[tokens.clamp(min=0)] * known)
            loss, hits = self.judge(state, output, batch, rows, stage + 1)
            total = total + loss
            table.append(hits)
        return total, torch.stack(table)

    def save(self, directory: Path) -> None:
        """See `Trainee.save`."""
        found = self.model.to_checkpoint()
        config = found.config.changed(vocab_size=self._vocab_size)
        tensors = as_dtype(found.tensors, "bfloat16")
        checkpoint = MlpSpeculatorCheckpoint(config, tensors)
        if len(self._kept) == self._vocab_size:
            save_checkpoint(checkpoint, directory)
            return
        write_draft_vocabulary(directory, self._kept.numpy())
        save_rows(checkpoint, directory)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of variance 1/D."""
    return rows / rows.std() / math.sqrt(rows.shape[1])
