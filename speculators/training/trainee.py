"""What the loop asks of a family: one module whose forward pass gives loss and hits of a batch.

Row r of a batch is a token that the target has read; the token r + 1 is to be drafted. Depth d drafts it in a chain
whose root is the token r - d + 1: the drafter has hidden states up to r - d, and knows the tokens up to r. While
training, those tokens are the true ones. So they are in a chain whose first d - 1 drafted tokens were right, which is
why hits of a teacher-forced pass give the acceptance length exactly (`speculators.training.acceptance`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from speculators.training.distillation import Teacher, distill, teach
from speculators.training.features import Batch
from speculators.training.unrolled import Roots


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a batch whose next token is learned.

    Attributes:
        sequence, position: int64 ``[R]``: where they are.
        teacher: what is right there.
    """

    sequence: torch.Tensor
    position: torch.Tensor
    teacher: Teacher


class Trainee(nn.Module):
    """A drafter in training.

    Attributes:
        layers: hidden states of the target that it reads, besides the final one.
        depth: tokens drafted in a chain.
    """

    layers: tuple[int, ...] = ()
    depth: int
    _kept: torch.Tensor
    _draft_ids: torch.Tensor
    _target_output: torch.Tensor

    def __init__(self, target_output: torch.Tensor, kept: torch.Tensor, *, soft: bool, decay: float) -> None:
        """`target_output` is the target's ``[V, H]``, `kept` the target ids of the draft vocabulary, ascending."""
        super().__init__()
        ids = torch.full((len(target_output),), -1, dtype=torch.int64)
        ids[kept] = torch.arange(len(kept))
        self.register_buffer("_kept", kept, persistent=False)
        self.register_buffer("_draft_ids", ids, persistent=False)
        output = target_output[kept].detach().to(torch.bfloat16)
        self.register_buffer("_target_output", output, persistent=False)
        self._soft, self._decay = soft, decay

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of all depths, and hits, bool ``[depth, B, T]``: was the token after row t drafted at this depth?"""
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        """Write the published checkpoint into an existing directory, in bfloat16."""
        raise NotImplementedError

    def is_hidden_matrix(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter maps hidden states to hidden states: no embedding, output matrix, norm or bias."""
        return parameter.dim() == 2 and parameter.shape[0] not in (len(self._kept), len(self._draft_ids))

    def rows(self, batch: Batch) -> Rows:
        """The rows that are learned, with the target's distribution there."""
        sequence, position = batch.learned[:, 1:].nonzero(as_tuple=True)
        labels = self._draft_ids[batch.tokens[sequence, position + 1]]
        final = batch.final[sequence, position]
        return Rows(sequence, position, teach(final, self._target_output, labels, soft=self._soft))

    def judge(
        self,
        states: torch.Tensor,
        output: torch.Tensor,
        batch: Batch,
        rows: Rows,
        depth: int,
        roots: Roots | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted loss and hits ``[B, T]`` of one depth.

        Args:
            states: float ``[B, T, H]``; at t what drafts the token t + depth + 1 (depth 0: a model that has read t).
                With `roots` ``[B, R, H]``, of those alone.
            output: the output matrix, ``[W, H]``.
            batch: the batch.
            rows: from `rows`.
            depth: from 1; 0 for a draft model.
            roots: the positions that drafted.
        """
        inside, read = drafting(states, rows, depth, roots)
        loss, hits = distill(read, output, inside.teacher)
        table = torch.zeros_like(batch.learned)
        table[inside.sequence, inside.position] = hits
        return self._decay ** max(depth - 1, 0) * loss, table


def drafting(states: torch.Tensor, rows: Rows, depth: int, roots: Roots | None) -> tuple[Rows, torch.Tensor]:
    """The rows that a chain of this depth reaches, and the states that draft there, ``[R, H]``; see `Trainee.judge`."""
    inside = rows.position >= depth
    found = Rows(rows.sequence[inside], rows.position[inside], rows.teacher.rows(inside))
    root = found.position - depth
    return found, states[found.sequence, root if roots is None else roots.place[found.sequence, root]]
