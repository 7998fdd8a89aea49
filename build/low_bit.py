"""The target in four bits, which low-bit self-drafting drafts with on the target's own cache."""

from pathlib import Path

from build.draft_graphs import DraftGraphs
from build.graph.target import build_target_graph
from build.targets.architecture import Architecture
from build.targets.weights import load_weights
from deployments.engines import Precision
from engine.manifest import MODEL_NAME
from engine.runner import BLOCK_SIZE


def plan_copy(target: Path, *, precision: Precision, max_sequence_length: int) -> DraftGraphs:
    """What it is compiled to.

    Raises:
        TargetError: the target cannot be read.
    """
    architecture = Architecture.from_directory(target)
    return DraftGraphs(
        lambda: {
            MODEL_NAME: build_target_graph(
                architecture,
                load_weights(target),
                precision=precision,
                max_positions=max_sequence_length,
                block_size=BLOCK_SIZE,
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
