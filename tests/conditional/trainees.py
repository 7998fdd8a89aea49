"""Drafters that are there and stay as they are, while a tree over their output matrix is trained by the kit's loop.

All nodes are computed while training, and every leaf gets a probability. The tree learns how much of the target's
distribution lies in each leaf (cross-entropy). The choice of leaves is hard where hits are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from speculators.eagle3.training import Eagle3Trainee
from speculators.mlp_speculator.training import MlpSpeculatorTrainee
from speculators.training.distillation import Teacher
from speculators.training.families import Ingredients, fused_beginning
from speculators.training.features import Batch
from speculators.training.trainee import Rows, Trainee, drafting
from speculators.training.unrolled import Roots
from tests.conditional.tree import OutputTree, balanced_leaves, path_signs

Choice = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Router(nn.Module):
    """The nodes of a tree.

    Args:
        leaves: int64 ``[2^d, L]``, rows of the output matrix in each leaf.
        width: of the states, H.
    """

    _leaves: torch.Tensor
    _leaf_of: torch.Tensor
    _signs: torch.Tensor

    def __init__(self, leaves: torch.Tensor, width: int) -> None:
        super().__init__()
        leaf_of = torch.empty(leaves.numel(), dtype=torch.int64)
        leaf_of[leaves] = torch.arange(len(leaves))[:, None]
        self.register_buffer("_leaves", leaves, persistent=False)
        self.register_buffer("_leaf_of", leaf_of, persistent=False)
        self.register_buffer("_signs", torch.from_numpy(path_signs(len(leaves))), persistent=False)
        self.nodes = nn.Parameter(torch.zeros(len(leaves) - 1, width))

    def forward(self, states: torch.Tensor, teacher: Teacher) -> torch.Tensor:
        """Weighted mean cross-entropy of the leaves."""
        log_probs = self.log_probs(states)
        if teacher.probabilities is None:
            leaf = self._leaf_of[teacher.labels.clamp(min=0)]
            right = log_probs.gather(1, leaf[:, None])[:, 0]
        else:
            within = teacher.probabilities[:, self._leaves.flatten()].view(len(states), *self._leaves.shape)
            right = (log_probs * within.sum(-1, dtype=torch.float32)).sum(-1)
        return -(right @ teacher.weights) / teacher.weights.sum().clamp(min=1.0)

    def log_probs(self, states: torch.Tensor) -> torch.Tensor:
        """Of each leaf, float32 ``[R, 2^d]``, by states ``[R, H]``."""
        scores = (states @ self.nodes.T).float()
        second = nn.functional.logsigmoid(scores)
        return second @ self._signs.clamp(min=0).T + (second - scores) @ self._signs.clamp(max=0).abs().T

    def likeliest(self, states: torch.Tensor, output: torch.Tensor, read: int) -> torch.Tensor:
        """The row of the output matrix ``[W, H]`` with the greatest logit within so many leaves."""
        chosen = self.log_probs(states).topk(read, dim=-1).indices
        is_read = torch.zeros(len(states), len(self._leaves), dtype=torch.bool).scatter_(
            1, chosen, value=True
        )
        logits = states.float() @ output.float().T
        return logits.masked_fill(~is_read[:, self._leaf_of], -torch.inf).argmax(-1)

    def tree(self) -> OutputTree:
        """The tree as it is compiled, with one leaf read."""
        return OutputTree(self.nodes.detach().float().numpy(), self._leaves.numpy(), 1)


class _Routed(Trainee):
    """Judges with a tree, and lets nothing else learn.

    Attributes:
        router: the tree.
        choices: where hits are measured, ways to choose draft ids by states and output matrix.
        hits: of each of them, for the batch that was judged last: bool ``[B, T]`` by depth.
    """

    router: Router
    choices: Mapping[str, Choice]
    hits: dict[str, list[torch.Tensor]]

    def route(self, target_output: torch.Tensor, depth: int) -> None:
        """Freeze the drafter and begin a tree over rows that are like in the target's output matrix ``[W, H]``."""
        leaves = balanced_leaves(target_output.detach().float().cpu().numpy(), depth)
        self.requires_grad_(False)
        self.router = Router(torch.from_numpy(leaves), target_output.shape[1])
        self.choices, self.hits = {}, {}

    def judge(
        self,
        states: torch.Tensor,
        output: torch.Tensor,
        batch: Batch,
        rows: Rows,
        depth: int,
        roots: Roots | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Trainee.judge`; hits are in `hits` instead."""
        inside, read = drafting(states, rows, depth, roots)
        for name, choose in self.choices.items():
            table = torch.zeros_like(batch.learned)
            table[inside.sequence, inside.position] = choose(read, output) == inside.teacher.labels
            self.hits.setdefault(name, []).append(table)
        return self.router(read, inside.teacher), torch.zeros_like(batch.learned)


class RoutedEagle3(_Routed, Eagle3Trainee):
    """EAGLE-3."""


class RoutedMlpSpeculator(_Routed, MlpSpeculatorTrainee):
    """An MLP speculator."""


def _eagle3(given: Ingredients) -> RoutedEagle3:
    return RoutedEagle3(fused_beginning(given), unroll=given.training.unroll)


def _mlp_speculator(given: Ingredients) -> RoutedMlpSpeculator:
    training = given.training
    return RoutedMlpSpeculator(
        given.target,
        given.kept,
        depth=training.depth,
        soft=training.labels == "soft",
        start=given.weights,
    )


ROUTED: Mapping[str, Callable[[Ingredients], RoutedEagle3 | RoutedMlpSpeculator]] = {
    "eagle3": _eagle3,
    "mlp_speculator": _mlp_speculator,
}
"""By method, the drafter of the checkpoint that training begins from."""
