"""Maps the graph's `drafthouse::PagedAttention` to OpenVINO's paged-attention kernel.

OpenVINO's `PagedAttentionExtension` (28 inputs in release 2026.4; order as in its `paged_attention.hpp`) is the
kernel behind continuous batching in openvino-genai. It takes ragged batches without padding, writes new keys and
values into the cache in place. Features that this kit does not use (ALiBi, cache rotation, XAttention, sinks,
adaptive RKV, token-tree masks) are switched off by empty inputs.
"""

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as ops
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension
from openvino.op import _PagedAttentionExtension

OPERATOR, DOMAIN = "PagedAttention", "drafthouse"


def conversion(*, padding: bool) -> ConversionExtension:
    """The extension to add to an `ov.Core` before it reads the graph.

    Args:
        padding: whether attention may have more query rows than there are tokens, for branches of trees and for
            padding; if not, `attention_rows` and `token_rows` are left out, and with them two operators a layer.
    """
    return ConversionExtension(OPERATOR, DOMAIN, _with_padding if padding else _tokens_alone)


def _constant(values: Any, kind: type[np.generic]) -> Any:
    return ops.constant(np.array(values, kind)).output(0)


def _nothing(kind: type[np.generic], rank: int = 1) -> Any:
    return ops.constant(np.zeros((0,) * rank, kind)).output(0)


def _tokens_alone(node: NodeContext) -> list[ov.Output]:
    return [_attention(node, *(node.get_input(index) for index in range(3)))]


def _with_padding(node: NodeContext) -> list[ov.Output]:
    query_rows, output_rows = node.get_input(10), node.get_input(11)
    rows = (ops.gather(node.get_input(index), query_rows, 0).output(0) for index in range(3))
    return [ops.gather(_attention(node, *rows), output_rows, 0).output(0)]


def _attention(node: NodeContext, queries: ov.Output, keys: ov.Output, values: ov.Output) -> ov.Output:
    caches_and_batch = [node.get_input(index) for index in range(3, 9)]
    longest = node.get_input(9)
    inputs = [
        *(queries, keys, values, *caches_and_batch),
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
        *(_nothing(np.uint8), _nothing(np.int32)),  # token-tree masks
    ]
    attention = _PagedAttentionExtension(inputs)
    info = attention.get_rt_info()
    for kind in ("k", "v"):
        info[f"num_{kind}_heads"] = node.get_attribute("kv_heads")
        info[f"{kind}_head_size"] = node.get_attribute("head_dim")
    return attention.output(0)
