"""The optimisers of a run: AdamW, and Muon for the matrices between hidden states.

Muon (Jordan 2024) turns the momentum of a matrix into its nearest orthogonal one, so that all directions of a matrix
learn equally fast. Its steps are scaled to the root mean square of AdamW's (arXiv 2502.16982, section 2.2). Embeddings,
output matrices, norms and biases stay with AdamW, as in both sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from speculators.training.arithmetic import product_type
from speculators.training.trainee import Trainee

# Of the learning rate, for matrices; output matrices start as the target's and want small steps.
_MATRIX_RATE = 2.5
_RMS_OF_ADAMW = 0.2


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
    matrices = Muon(faster, rate, decay)
    return [matrices, torch.optim.AdamW(_groups(rest, decay), lr=rate, betas=betas)]


class Muon(torch.optim.Muon):
    """PyTorch's, which multiplies in bfloat16 whatever the device has: here in what it has.

    One step of SmolLM2's EAGLE-3 so takes 1 s instead of 20 on a processor without bfloat16 (AMD Zen 3, two threads).
    """

    def __init__(self, groups: Sequence[dict[str, Any]], rate: float, decay: float) -> None:
        super().__init__(groups, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """See `torch.optim.Muon.step`."""
        learned = [item for group in self.param_groups for item in group["params"] if item.grad is not None]
        if all(product_type(item.device) == torch.bfloat16 for item in learned):
            return super().step(closure)  # type: ignore[no-untyped-call]
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for item in group["params"]:
                if item.grad is not None:
                    self._learn(item, item.grad, group)
        return loss

    def _learn(self, item: torch.Tensor, slope: torch.Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[item]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(slope)
        momentum = state["momentum_buffer"]
        momentum.lerp_(slope, 1 - group["momentum"])
        turned = orthogonal(
            slope.lerp(momentum, group["momentum"]),
            group["ns_coefficients"],
            group["ns_steps"],
            group["eps"],
        )
        item.mul_(1 - group["lr"] * group["weight_decay"])
        item.add_(turned, alpha=-group["lr"] * _RMS_OF_ADAMW * math.sqrt(max(item.shape)))


def orthogonal(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> torch.Tensor:
    """Nearly the orthogonal matrix next to a matrix, by Jordan's Newton-Schulz iteration, in the matrix's own type."""
    first, second, third = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    turned = matrix.T if tall else matrix
    turned = turned / turned.norm().clamp(min=epsilon)  # no singular value above 1
    for _ in range(steps):
        gram = turned @ turned.T
        turned = torch.addmm(
            turned, torch.addmm(gram, gram, gram, beta=second, alpha=third), turned, beta=first
        )
    return turned.T if tall else turned


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
