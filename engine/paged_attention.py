"""Maps the graph's `drafthouse::PagedAttention` to OpenVINO's paged-attention kernel.

OpenVINO's `PagedAttentionExtension` (28 inputs in release 2026.4; order as in its `paged_attention.hpp`) is the
kernel behind continuous batching in openvino-genai. It takes ragged batches without padding, writes new keys and
values into the cache in place, and reads token-tree masks from `qq_bias`. Features that this kit does not use
(ALiBi, cache rotation, XAttention, sinks, adaptive RKV) are switched off by empty inputs.
"""

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as ops
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension
from openvino.op import _PagedAttentionExtension

OPERATOR, DOMAIN = "PagedAttention", "drafthouse"


def conversion() -> ConversionExtension:
    """The extension to add to an `ov.Core` before it reads the graph."""
    return ConversionExtension(OPERATOR, DOMAIN, _convert)


def _constant(values: Any, kind: type[np.generic]) -> Any:
    return ops.constant(np.array(values, kind)).output(0)


def _nothing(kind: type[np.generic], rank: int = 1) -> Any:
    return ops.constant(np.zeros((0,) * rank, kind)).output(0)


def _convert(node: NodeContext) -> list[ov.Output]:
    (
        queries,
        keys,
        values,
        key_cache,
        value_cache,
        past,
        begins,
        blocks,
        block_begins,
        longest,
        bias,
        bias_begins,
    ) = (node.get_input(index) for index in range(12))
    inputs = [
        *(queries, keys, values, key_cache, value_cache, past, begins, blocks, block_begins),
        _constant(node.get_attribute("scale"), np.float32),
        _constant(node.get_attribute("sliding_window"), np.int32),
        _nothing(np.float32),  # ALiBi slopes
        longest,
        *(_nothing(np.int32) for _ in range(3)),  # score window, rotated blocks, rotation deltas
        *(_nothing(np.float32) for _ in range(2)),  # rotation table, XAttention threshold
        *(_constant(size, np.int32) for size in (64, 8)),  # XAttention block size and stride
        _nothing(np.float32, rank=4),  # sinks
        _constant(0, np.int32),  # adaptive RKV: start size, then its sizes and block sets
        *(_nothing(np.int32) for _ in range(4)),  # ... and token types
        *(bias, bias_begins),
    ]
    attention = _PagedAttentionExtension(inputs)
    info = attention.get_rt_info()
    for kind in ("k", "v"):
        info[f"num_{kind}_heads"] = node.get_attribute("kv_heads")
        info[f"{kind}_head_size"] = node.get_attribute("head_dim")
    return [attention.output(0)]
