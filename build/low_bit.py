"""The target in four bits, which low-bit self-drafting drafts with on the target's own cache."""

import math
from pathlib import Path

import onnx

from build.draft_graphs import DraftGraphs
from build.graph.mixed_bits import LayerBits, in_eight_bits
from build.graph.target import build_target_graph
from build.input_squares import input_squares
from build.targets.architecture import Architecture
from build.targets.weights import load_weights
from deployments.engines import Precision
from deployments.speculation import LowBit
from engine.manifest import MODEL_NAME, EngineError
from engine.runner import BLOCK_SIZE


def plan_copy(
    speculation: LowBit, target: Path, *, precision: Precision, max_sequence_length: int
) -> DraftGraphs:
    """What it is compiled to.

    Raises:
        TargetError: the target cannot be read.
        EngineError: the section's rank is beyond that of its matrices, or its bits are none that they can have.
    """
    architecture, budget = Architecture.from_directory(target), speculation.bits_per_weight
    check_rank(speculation, architecture)
    check_bits(speculation, architecture)

    def build() -> dict[str, onnx.ModelProto]:
        weights, eight_bits = load_weights(target), frozenset[str]()
        weighed = speculation.rank or budget is not None
        squares = input_squares(target, weights) if weighed else {}
        if budget is not None:
            eight_bits = in_eight_bits(architecture, weights, squares, budget)
        graph = build_target_graph(
            architecture,
            weights,
            precision=precision,
            max_positions=max_sequence_length,
            block_size=BLOCK_SIZE,
            rank=speculation.rank,
            squares=squares,
            eight_bits=eight_bits,
        )
        return {MODEL_NAME: graph}

    return DraftGraphs(
        build,
        (MODEL_NAME,),
        {
            "candidates": 1,
            "hidden_layers": (),
            "widths": (architecture.hidden_size, architecture.intermediate_size),
            "max_sequence_length": max_sequence_length,
        },
    )


def check_rank(speculation: LowBit, target: Architecture) -> None:
    """Refuse a correction of a higher rank than what it corrects.

    Raises:
        EngineError: it is.
    """
    most = min(target.hidden_size, target.num_heads * target.head_dim)
    if speculation.rank > most:
        raise EngineError(
            f"rank {speculation.rank} is more than the {most} that the target's matrices have; usual are 16 to 64"
        )


def check_bits(speculation: LowBit, target: Architecture) -> None:
    """Refuse a budget below what the layers have in four bits, or above what they have in eight.

    Raises:
        EngineError: it is one.
    """
    budget, bits = speculation.bits_per_weight, LayerBits.of(target)
    least, most = (math.ceil(100 * of_all / bits.weights) / 100 for of_all in (bits.least, bits.most))
    if budget is not None and not least <= budget <= most:
        raise EngineError(
            f"bits_per_weight must be from {least:.2f} (all matrices of the target's layers in four bits, with their "
            f"scales and least values) to {most:.2f} (all in eight), not {budget:g}"
        )
