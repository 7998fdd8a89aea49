"""Medusa-1 in training: heads on a frozen target, each with its own cross-entropy (arXiv 2401.10774, section 2.2).

The heads have no output matrices of their own: the target's serves, in the rows of the draft vocabulary, which is the
layout of the repository's `train_legacy.py`. Heads of a checkpoint that have some keep and train them. Head k is
weighted by 0.8^k.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from speculators.formats.draft_vocabulary import TARGET_OUTPUT, write_draft_vocabulary
from speculators.formats.tensors import as_dtype, numpy_array
from speculators.medusa.checkpoint import MedusaCheckpoint, save_checkpoint
from speculators.medusa.config import MedusaConfig
from speculators.medusa.model import MedusaHeads
from speculators.training.features import Batch
from speculators.training.target import FrozenTarget
from speculators.training.trainee import Trainee


class MedusaTrainee(Trainee):
    """The heads and what they learn."""

    def __init__(
        self,
        target: FrozenTarget,
        kept: torch.Tensor,
        *,
        depth: int,
        blocks: int,
        decay: float,
        soft: bool,
        start: MedusaCheckpoint | None = None,
    ) -> None:
        """`start` is the checkpoint that training begins from; `depth` and `blocks` are its own then."""
        super().__init__(target.lm_head, kept, soft=soft, decay=decay)
        self.depth = depth
        if start is not None:
            self.model = MedusaHeads.from_checkpoint(start)
            return
        config = MedusaConfig(medusa_num_heads=depth, medusa_num_layers=blocks)
        self.model = MedusaHeads(config, target.hidden_size, None)
        self.model.initialize(target.lm_head)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Trainee.forward`."""
        rows, final = self.rows(batch), batch.final.float()
        total, table = final.new_zeros(()), []
        for depth, head in enumerate(self.model, start=1):
            states = self.model.states(head, final)
            loss, hits = self.judge(states, self._output(head), batch, rows, depth)
            total = total + loss
            table.append(hits)
        return total, torch.stack(table)

    def save(self, directory: Path) -> None:
        """See `Trainee.save`."""
        found = self.model.to_checkpoint()
        if self.model.has_outputs:
            if len(self._kept) < len(self._draft_ids):
                write_draft_vocabulary(directory, self._kept.numpy())
            save_checkpoint(MedusaCheckpoint(found.config, as_dtype(found.tensors, "bfloat16")), directory)
            return
        output = as_dtype({TARGET_OUTPUT: numpy_array(self._target_output)}, "bfloat16")[TARGET_OUTPUT]
        write_draft_vocabulary(directory, self._kept.numpy(), output)
        config = found.config.told_to_vllm(output.shape[1], len(self._draft_ids), len(self._kept))
        save_checkpoint(MedusaCheckpoint(config, as_dtype(found.tensors, "bfloat16")), directory)

    def _output(self, head: nn.Module) -> torch.Tensor:
        """The output matrix of a head, in the rows of the draft vocabulary."""
        rows = self.model.output(head)
        if rows is None:
            return self._target_output
        return rows[self._kept] if len(self._kept) < len(rows) else rows
