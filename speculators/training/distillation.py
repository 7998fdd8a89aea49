"""Cross-entropy against the target over a draft vocabulary, fused with the output matrix that makes the logits.

For small targets the output matrix is most of a drafter. Logits ``[rows, W]`` of a whole batch would be its largest
tensor by far, so rows are taken in chunks that stay in the processor's caches: of each chunk logits, loss and
gradients are computed at once, and only the gradients of inputs and weights are kept (the idea of Liger Kernel's fused
linear cross-entropy, arXiv 2410.10989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from speculators.training.arithmetic import product_type

_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Teacher:
    """What the target says at R rows.

    Attributes:
        probabilities: its distribution over the draft vocabulary, bfloat16 ``[R, W]``; None for hard labels.
        labels: draft id of the token that comes next, int64 ``[R]``; -1 where it cannot be drafted.
        weights: float32 ``[R]``: 0 where there is nothing to learn.
    """

    probabilities: torch.Tensor | None
    labels: torch.Tensor
    weights: torch.Tensor

    def rows(self, chosen: torch.Tensor) -> Teacher:
        """The same of some rows."""
        soft = None if self.probabilities is None else self.probabilities[chosen]
        return Teacher(soft, self.labels[chosen], self.weights[chosen])


@torch.no_grad()
def teach(final: torch.Tensor, output: torch.Tensor, labels: torch.Tensor, *, soft: bool) -> Teacher:
    """What there is to learn at rows with final states ``[R, H]``.

    A row has no weight where the target's next token cannot be drafted: what is drafted there is rejected anyway.

    Args:
        final: states after the final norm.
        output: the target's output matrix of the draft vocabulary, ``[W, H]``.
        labels: draft id of the next token, -1 where it has none.
        soft: learn the target's distribution, not just the token.
    """
    weights = (labels >= 0).float()
    if not soft:
        return Teacher(None, labels, weights)
    kind = product_type(final.device)
    matrix = output.to(kind)
    probabilities = torch.empty(len(final), len(matrix), dtype=torch.bfloat16, device=final.device)
    for start in range(0, len(final), _CHUNK):
        part = slice(start, start + _CHUNK)
        probabilities[part] = torch.softmax(final[part].to(kind) @ matrix.T, -1, dtype=torch.float32)
    return Teacher(probabilities, labels, weights)


def distill(
    states: torch.Tensor, output: torch.Tensor, teacher: Teacher
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy, and whether the likeliest token is the target's.

    Args:
        states: float ``[R, H]``, what the output matrix reads.
        output: the drafter's output matrix, ``[W, H]``.
        teacher: what is right.

    Returns:
        A scalar, and bool ``[R]``.
    """
    loss, hits = _Distillation.apply(states, output, teacher)  # type: ignore[no-untyped-call]
    return loss, hits


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, states: torch.Tensor, output: torch.Tensor, teacher: Teacher
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_states, wants_output, _ = context.needs_input_grad
        kind = product_type(states.device)
        matrix = output.to(kind)
        share = teacher.weights / teacher.weights.sum().clamp(min=1.0)
        loss = states.new_zeros((), dtype=torch.float32)
        hits = torch.empty(len(states), dtype=torch.bool, device=states.device)
        state_grad = torch.empty_like(states, dtype=kind) if wants_states else None
        output_grad = torch.zeros_like(output, dtype=torch.float32) if wants_output else None
        for start in range(0, len(states), _CHUNK):
            part = slice(start, start + _CHUNK)
            inputs = states[part].to(kind)
            logits = (inputs @ matrix.T).float()
            labels = teacher.labels[part]
            top, best = logits.max(-1, keepdim=True)
            hits[part] = best[:, 0] == labels
            soft = None if teacher.probabilities is None else teacher.probabilities[part]
            if soft is None:
                right = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
            else:
                right = torch.linalg.vecdot(logits, soft.float())
            logits.sub_(top).exp_()
            total = logits.sum(-1, keepdim=True)
            loss += ((top + total.log())[:, 0] - right) @ share[part]
            if not (wants_states or wants_output):
                continue
            logits.div_(total)
            if soft is None:
                logits.scatter_add_(1, labels.clamp(min=0)[:, None], logits.new_full((len(labels), 1), -1.0))
            else:
                logits.sub_(soft)
            slope = logits.mul_(share[part, None]).to(kind)
            if state_grad is not None:
                torch.matmul(slope, matrix, out=state_grad[part])
            if output_grad is not None:
                output_grad += slope.T @ inputs
        context.save_for_backward(state_grad, output_grad)
        context.state_type, context.output_type = states.dtype, output.dtype
        context.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(context: Any, loss_grad: torch.Tensor, _: torch.Tensor) -> tuple[Any, Any, None]:
        state_grad, output_grad = context.saved_tensors
        return (
            None if state_grad is None else (state_grad * loss_grad).to(context.state_type),
            None if output_grad is None else (output_grad * loss_grad).to(context.output_type),
            None,
        )
