"""How large what each matrix of a target's layers is multiplied with is: an error of it comes to as much in the output.

Mean squares, over the beginnings of some of the kit's prompts, which the target in eight bits reads.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from build.graph.mixed_bits import matrix_shapes
from build.graph.target import INPUT, build_target_graph
from build.targets.errors import TargetError
from build.targets.files import writing_errors
from build.targets.weights import Weights
from deployments.engines import Precision
from deployments.places import KIT_PROMPTS
from engine.attention_kernels import ANY_ATTENTION, open_kernel
from engine.manifest import MODEL_NAME
from engine.openvino_graphs import PagedGraph, settings
from engine.runner import BLOCK_SIZE, SequenceInput
from engine.serving.text import TextCodec

_PRECISION: Precision = "int8"
_LONGEST = 128  # tokens of a text
_EVERY = 3  # takes one prompt of so many; they are sorted by category


def input_squares(target: Path, weights: Weights) -> dict[str, NDArray[np.float64]]:
    """Mean squares [in] by the name of the matrix.

    Raises:
        TargetError: the target has no tokenizer, or there is no room for a copy of it in eight bits where temporary
            files are.
    """
    architecture, blocks = weights.architecture, range(_LONGEST // BLOCK_SIZE)
    shapes, texts = matrix_shapes(architecture), list(calibration_texts(target))
    graph = build_target_graph(
        architecture,
        weights,
        precision=_PRECISION,
        max_positions=_LONGEST,
        block_size=BLOCK_SIZE,
        shows_inputs=True,
    )
    totals = {name: np.zeros(inputs) for name, (_, inputs) in shapes.items()}
    with tempfile.TemporaryDirectory(prefix="drafthouse-") as scratch:
        path = Path(scratch) / MODEL_NAME
        with writing_errors(path.parent):
            onnx.save_model(graph, str(path), save_as_external_data=True, location=f"{MODEL_NAME}.data")
        del graph
        network = PagedGraph(
            path,
            outputs=[INPUT + name for name in shapes],
            kernel=open_kernel(ANY_ATTENTION, weights=_PRECISION, num_blocks=len(blocks), branch_blocks=0),
            longest=_LONGEST,
            how=settings(precision=_PRECISION, widths=[inputs for _, inputs in shapes.values()], threads=0),
        )
        for text in texts:
            network.forward([SequenceInput(text, 0, blocks, is_prompt=True)])
            for name, total in totals.items():
                total += np.square(network.output(INPUT + name)).sum(axis=0, dtype=np.float64)
    return {name: total / sum(map(len, texts)) for name, total in totals.items()}


def calibration_texts(target: Path) -> Iterator[list[int]]:
    """What is read, as tokens of the target.

    Raises:
        TargetError: it has no tokenizer.
    """
    try:
        codec = TextCodec(target)
    except OSError as error:
        raise TargetError(f"{target} has no tokenizer: {error}") from error
    for line in KIT_PROMPTS.read_text(encoding="utf-8").splitlines()[::_EVERY]:
        yield codec.encode(json.loads(line)["turns"][0])[:_LONGEST]
