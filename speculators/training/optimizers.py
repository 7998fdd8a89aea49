"""The optimisers of a run: AdamW, and Muon for the matrices between hidden states.

Muon (Jordan 2024) turns the momentum of a matrix into its nearest orthogonal one, so that all directions of a matrix
learn equally fast. Its steps are scaled to the root mean square of AdamW's (arXiv 2502.16982, section 2.2). Embeddings,
output matrices, norms and biases stay with AdamW, as in both sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from speculators.training.trainee import Trainee

# Of the learning rate, for matrices; output matrices start as the target's and want small steps.
_MATRIX_RATE = 2.5


def adamw(
    trainee: Trainee, rate: float, betas: tuple[float, float], decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW for everything that is learned."""
    return [torch.optim.AdamW(_groups(_learned(trainee), decay), lr=rate, betas=betas)]


def muon(
    trainee: Trainee, rate: float, betas: tuple[float, float], decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between hidden states, AdamW for the rest."""
    learned = _learned(trainee)
    inner = [item for item in learned if trainee.is_hidden_matrix(item)]
    chosen = {id(item) for item in inner}
    rest = [item for item in learned if id(item) not in chosen]
    faster = [{"params": inner, "rate": _MATRIX_RATE}]
    matrices = torch.optim.Muon(faster, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    return [matrices, torch.optim.AdamW(_groups(rest, decay), lr=rate, betas=betas)]


def _learned(trainee: Trainee) -> list[nn.Parameter]:
    return [parameter for parameter in trainee.parameters() if parameter.requires_grad]


def _groups(parameters: Sequence[nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Norms and biases are not decayed."""
    return [
        {"params": [item for item in parameters if item.dim() > 1], "weight_decay": decay},
        {"params": [item for item in parameters if item.dim() <= 1], "weight_decay": 0.0},
    ]


OPTIMIZERS = {"adamw": adamw, "muon": muon}
"""Makes the optimisers of a run; the `rate` of a group of parameters is its share of the learning rate."""
