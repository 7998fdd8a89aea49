"""The target in four bits, which low-bit self-drafting drafts with on the target's own cache."""

from pathlib import Path

from build.draft_graphs import DraftGraphs
from build.graph.target import build_target_graph
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
        EngineError: the section's rank is beyond that of its matrices.
    """
    architecture = Architecture.from_directory(target)
    check_rank(speculation, architecture)
    return DraftGraphs(
        lambda: {
            MODEL_NAME: build_target_graph(
                architecture,
                load_weights(target),
                precision=precision,
                max_positions=max_sequence_length,
                block_size=BLOCK_SIZE,
                rank=speculation.rank,
            )
        },
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
