"""Greedy output with and without speculation, token for token, and what to make of a difference.

Greedy decoding is deterministic, so both outputs must be equal. The one excuse is rounding:
floating-point sums differ a little between step shapes (one token or eight, batch one or eight), and
where the two top logits are closer together than that, either may win. A difference is such a near-tie
only if the gap between the two is below the noise, and the noise is measured where it matters: in the
very context in which the outputs part, by scoring it with several step shapes. Anything else is a bug.
After the first difference two outputs have different contexts and are not compared further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

# How many of the leading logits give the noise: the two in question alone would be too small a sample.
_CANDIDATES = 8
_HEADING: tuple[str, ...] = ("prompt", "position", "plain", "speculative", "gap", "noise", "verdict")

Shape = TypeVar("Shape")
Score = Callable[[Sequence[int], Shape], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class GreedyRun:
    """Both outputs for one prompt.

    Attributes:
        name: the prompt's name in reports.
        prompt: its token ids.
        plain: tokens emitted without speculation.
        speculative: tokens emitted with it.
    """

    name: str
    prompt: Sequence[int]
    plain: Sequence[int]
    speculative: Sequence[int]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first position at which two outputs differ.

    Attributes:
        name: the prompt's name.
        position: index into the output.
        plain_token: token without speculation; None: the output had ended.
        speculative_token: token with speculation; None: the output had ended.
        gap: how far the lower of the two tokens' logits lies below the greatest logit, with the first
            step shape; infinite if an output ended although no end token was possible.
        noise: greatest change, between step shapes, of the distance between the greatest logit and any of the
            leading ones.
    """

    name: str
    position: int
    plain_token: int | None
    speculative_token: int | None
    gap: float
    noise: float

    @property
    def near_tie(self) -> bool:
        """Whether rounding explains the difference; if not, it is a bug."""
        return self.gap < self.noise


@dataclass(frozen=True, slots=True)
class GreedyReport:
    """Outcome of a comparison.

    Attributes:
        prompts: number of prompts compared.
        tokens: tokens compared, up to the first difference of each prompt.
        divergences: one for each prompt whose outputs differ.
    """

    prompts: int
    tokens: int
    divergences: tuple[Divergence, ...]

    @property
    def equal(self) -> int:
        """Prompts whose outputs are equal token for token."""
        return self.prompts - len(self.divergences)

    @property
    def near_ties(self) -> int:
        """Prompts whose outputs differ at a near-tie."""
        return sum(divergence.near_tie for divergence in self.divergences)

    @property
    def bugs(self) -> int:
        """Prompts whose outputs differ where rounding cannot explain it."""
        return len(self.divergences) - self.near_ties

    @property
    def lossless(self) -> bool:
        """Whether every difference is a near-tie."""
        return self.bugs == 0

    def table(self) -> str:
        """The divergences as aligned text, one line each below a heading, then one line of counts."""
        cells = [_HEADING, *map(_row, self.divergences)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in cells]
        counts = f"{self.prompts} prompts, {self.tokens} tokens compared: {self.equal} prompts equal, "
        counts += f"{self.near_ties} near-ties, {self.bugs} bugs"
        return "\n".join([*lines, counts] if self.divergences else [counts])


def compare_greedy(
    runs: Iterable[GreedyRun], score: Score[Shape], step_shapes: Sequence[Shape], end_ids: frozenset[int]
) -> GreedyReport:
    """Compare outputs token for token and examine each difference.

    Args:
        runs: the outputs.
        score: ``score(prefix, step_shape)`` gives the logits, float ``[V]``, after ``prefix`` when it is
            run through the engine in steps of that shape, as the two kinds of run were; called only where
            outputs differ.
        step_shapes: two or more; the first is that of plain decoding.
        end_ids: tokens that end the output and are not part of it.

    Raises:
        ValueError: fewer than two step shapes.
    """
    if len(step_shapes) < 2:
        raise ValueError(
            f"greedy comparison: {len(step_shapes)} step shapes; noise between shapes takes at least two"
        )
    prompts = tokens = 0
    divergences: list[Divergence] = []
    for run in runs:
        prompts += 1
        position = first_divergence(run.plain, run.speculative)
        if position is None:
            tokens += len(run.plain)
        else:
            tokens += position + 1
            divergences.append(_examine(run, position, score, step_shapes, end_ids))
    return GreedyReport(prompts, tokens, tuple(divergences))


def first_divergence(plain: Sequence[int], speculative: Sequence[int]) -> int | None:
    """First index at which the outputs differ (the length of the shorter if it begins the other), or None."""
    for position, (left, right) in enumerate(zip(plain, speculative, strict=False)):
        if left != right:
            return position
    return None if len(plain) == len(speculative) else min(len(plain), len(speculative))


def _examine(
    run: GreedyRun, position: int, score: Score[Shape], step_shapes: Sequence[Shape], end_ids: frozenset[int]
) -> Divergence:
    """Gap and noise in the context in which the outputs of ``run`` part."""
    plain = run.plain[position] if position < len(run.plain) else None
    speculative = run.speculative[position] if position < len(run.speculative) else None
    prefix = [*run.prompt, *run.plain[:position]]
    logits = np.stack([score(prefix, shape) for shape in step_shapes]).astype(np.float64)
    first = logits[0]
    gap = float(first.max() - min(_logit(first, plain, end_ids), _logit(first, speculative, end_ids)))
    leading = np.argsort(-first, kind="stable")[:_CANDIDATES]
    margins = logits[:, leading[:1]] - logits[:, leading]
    noise = float(np.ptp(margins, axis=0).max())
    return Divergence(run.name, position, plain, speculative, gap, noise)


def _logit(logits: NDArray[np.float64], token: int | None, end_ids: frozenset[int]) -> float:
    """A token's logit; for an output that has ended, that of the likeliest end token."""
    if token is not None:
        return float(logits[token])
    return max((float(logits[end]) for end in end_ids), default=-np.inf)


def _row(divergence: Divergence) -> tuple[str, ...]:
    tokens = (divergence.plain_token, divergence.speculative_token)
    plain, speculative = ("end" if token is None else str(token) for token in tokens)
    verdict = "near-tie" if divergence.near_tie else "BUG"
    gap, noise = f"{divergence.gap:.3g}", f"{divergence.noise:.3g}"
    return divergence.name, str(divergence.position), plain, speculative, gap, noise, verdict
