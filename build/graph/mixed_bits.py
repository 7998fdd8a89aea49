"""Which matrices of layers have eight bits where the others have four, so that the least is lost under a budget.

Mixed bits a matrix are LQ-LoRA's (arXiv 2311.12023, section 3.2): with x = 1 for a matrix in eight bits::

    minimise   sum of ||(W - Q4(W)) D||_F^2 (1 - x) + ||(W - Q8(W)) D||_F^2 x
    such that  sum of bits4 (1 - x) + bits8 x <= bits_per_weight times the number of weights

D^2 is diagonal, the mean squares of the inputs (`build.input_squares`), so an error is what it comes to in the output.
Bits are all that is stored: four, and 16 each for a scale and a least value of 32 weights, which makes 5 a weight; or
eight, and 32 for the scale of an output. Two choices a matrix make it a knapsack, which is solved exactly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from build.graph.decoder import Weights, projections_of
from build.targets.architecture import Architecture
from engine.grouped_weights import (
    can_be_grouped,
    eight_bit_bytes,
    four_bit_bytes,
    grouped,
    quantize_rows,
    ungrouped,
)

Squares = NDArray[np.float64]

_GAP = 1e-6  # what the solver may leave of the gain that can be had


@dataclass(frozen=True)
class LayerBits:
    """Of all matrices of a target's layers.

    Attributes:
        weights: their number.
        least: bits that they have if all that can be have four.
        most: bits that they have in eight.
    """

    weights: int
    least: int
    most: int

    @classmethod
    def of(cls, architecture: Architecture) -> "LayerBits":
        shapes = matrix_shapes(architecture).values()
        return cls(
            sum(map(math.prod, shapes)),
            8
            * sum(
                four_bit_bytes(shape) if can_be_grouped(shape) else eight_bit_bytes(shape) for shape in shapes
            ),
            8 * sum(map(eight_bit_bytes, shapes)),
        )


def matrix_shapes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """[out, in] of each matrix of the layers, by its name in the graph."""
    of_projections = architecture.parameter_shapes()
    shapes = {}
    for layer in range(architecture.num_layers):
        for names in projections_of(layer):
            parts = [of_projections[f"{name}.weight"] for name in names]
            shapes["+".join(names)] = (sum(part[0] for part in parts), parts[0][1])
    return shapes


def in_eight_bits(
    architecture: Architecture, weights: Weights, squares: Mapping[str, Squares], bits_per_weight: float
) -> frozenset[str]:
    """Names of the matrices that have eight bits.

    Args:
        architecture: of the target.
        weights: its tensors.
        squares: for each matrix the mean squares [in] of its inputs.
        bits_per_weight: the budget, over the weights of all layers.
    """
    names, gains, costs = [], [], []
    for name, shape in matrix_shapes(architecture).items():
        if can_be_grouped(shape):
            names.append(name)
            weight = np.concatenate([weights[f"{part}.weight"] for part in name.split("+")])
            gains.append(_gain(weight, squares[name]))
            costs.append(8 * (eight_bit_bytes(shape) - four_bit_bytes(shape)))
    bits = LayerBits.of(architecture)
    chosen = knapsack(gains, costs, bits_per_weight * bits.weights - bits.least)
    return frozenset(name for name, taken in zip(names, chosen, strict=True) if taken)


def knapsack(gains: Sequence[float], costs: Sequence[int], room: float) -> list[bool]:
    """Which to take, so that the sum of gains is greatest and that of costs within `room`."""
    worth = [index for index, gain in enumerate(gains) if gain > 0]
    if not worth:
        return [False] * len(gains)
    gain, cost = np.array(gains)[worth], np.array(costs, np.float64)[worth]
    found = milp(
        -gain / gain.max(),
        integrality=np.ones(len(worth)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(cost / cost.max(), ub=room / cost.max()),
        options={"mip_rel_gap": _GAP},
    )
    taken = {index for index, take in zip(worth, np.rint(found.x), strict=True) if take}
    return [index in taken for index in range(len(gains))]


def _gain(weight: NDArray[np.float32], squares: Squares) -> float:
    """How much less eight bits lose than four."""
    values, scale = quantize_rows(weight)
    four, eight = weight - ungrouped(*grouped(weight)), weight - values * scale[:, None]
    return float((np.square(four).sum(axis=0) - np.square(eight).sum(axis=0)) @ squares)
