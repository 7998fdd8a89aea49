"""Which numbers of tokens a network is compiled for once more, with a shape that is fixed.

When the number of tokens of a step changes, OpenVINO prepares every node of the graph anew: a step of SmolLM2-135M
that takes 6.5 ms in a row of equal ones takes 9.5 ms between steps of another shape, where one token more costs 0.2 ms.
The lengths of drafts change all the time. A graph whose shape is fixed has nothing to prepare, and skips what shapes
that may vary cost a node in every step: 5.8 ms. So short steps are padded to the next bucket, as engines on CUDA
graphs do.

Each bucket keeps a packed copy of those weights that OpenVINO multiplies. What it saves grows with the number of nodes,
what it holds with their size, so large models have few buckets, or none: there a change of shape is a small share of a
step.
"""

from collections.abc import Iterable

_BY_USE = (2, 8, 4, 16, 6, 12)  # plain decoding first, then drafts of a request, then batches
_MOST_BYTES = 2 << 30


def buckets_for(num_bytes: int) -> list[int]:
    """Numbers of tokens, rising, for a network of which each keeps a copy of `num_bytes` bytes."""
    return sorted(_BY_USE[: _MOST_BYTES // max(1, num_bytes)])


def bucket_of(tokens: int, buckets: Iterable[int]) -> int | None:
    """The smallest of rising buckets that holds `tokens` tokens; None if none does."""
    return next((size for size in buckets if tokens <= size), None)
