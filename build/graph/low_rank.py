"""What rounding to four bits loses of a matrix, given back by a low-rank one (LQ-LoRA, arXiv 2311.12023, section 3.1).

W is about Q + L1 L2: in turn Q is what W - L1 L2 is rounded to, and L1 L2 is what is nearest to W - Q of that rank, as
long as the error falls. Near is what comes to little in the output: with D^2 the mean squares of the inputs, L1 L2 D is
nearest to (W - Q) D (the diagonal approximation of LQ-LoRA's data-aware version, section 3.3). It is found by
subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061), one step a round, which begins where that of the
last round ended.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.grouped_weights import grouped, ungrouped

Matrix = NDArray[np.float32]

_MOST_ROUNDS = 20
_SPARE = 8  # directions that are followed beyond the rank
_FALLS = 0.999  # an error that falls by less has stopped to fall
# Of the weights' norm: what was in four bits before loses its scales' rounding alone, and cannot be corrected.
_NOTHING_LOST = 1e-3
_LEAST_INPUT = 1e-3  # of the largest: an input that was never seen may still come


@dataclass(frozen=True)
class Corrected:
    """A matrix [out, in] as four bits in groups, and what they lose.

    Attributes:
        four_bits: codes, scales and least values, as `engine.grouped_weights.grouped` gives them.
        left, right: of the correction, [out, rank] and [rank, in]; None: there is none.
    """

    four_bits: tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]
    left: Matrix | None = None
    right: Matrix | None = None


def corrected(weight: Matrix, rank: int, squares: NDArray[np.float64] | None = None) -> Corrected:
    """Round a matrix, with a correction.

    Args:
        weight: [out, in].
        rank: of the correction; 0, or nothing to be corrected: none.
        squares: mean squares of the inputs, [in], which errors are weighed by; None: all count alike.
    """
    best = Corrected(grouped(weight))
    lost = weight - ungrouped(*best.four_bits)
    if not rank or float(np.linalg.norm(lost)) <= _NOTHING_LOST * np.linalg.norm(weight):
        return best
    sizes = _sizes(np.ones(weight.shape[1]) if squares is None else squares)
    least = float(np.linalg.norm(lost * sizes))
    basis = np.random.default_rng(0).standard_normal((weight.shape[1], rank + _SPARE)).astype(np.float32)
    rounded = best.four_bits
    for _ in range(_MOST_ROUNDS):
        left, right, basis = _nearest(lost * sizes, rank, basis)
        right /= sizes
        error = float(np.linalg.norm((lost - left @ right) * sizes))
        if error > _FALLS * least:
            break
        best, least = Corrected(rounded, left, right), error
        rounded = grouped(weight - left @ right)
        lost = weight - ungrouped(*rounded)
    return best


def _sizes(squares: NDArray[np.float64]) -> Matrix:
    """How large inputs are, in relation to the largest."""
    sizes: Matrix = np.sqrt(squares / squares.max()).astype(np.float32)
    return np.maximum(sizes, np.float32(_LEAST_INPUT))


def _nearest(matrix: Matrix, rank: int, basis: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """The factors of the nearest matrix of a rank, and what to begin with for the next one that is like this one."""
    columns = np.linalg.qr(matrix @ basis)[0]
    basis = matrix.T @ columns
    left, values, right = np.linalg.svd(basis.T, full_matrices=False)
    share = np.sqrt(values[:rank])
    return columns @ (left[:, :rank] * share), share[:, None] * right[:rank], basis
