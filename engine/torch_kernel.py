"""Paged attention in Triton's language: each cache block is read once, where it lies, for all rows of a request.

A program has the query heads of one key head, times the new rows of one request, as the rows of a tile, and reads a
chunk of its context for them; so one long request uses the whole device. It leaves the greatest score, the sum of
weights and the weighted values of its chunk, which a second kernel joins (FlashDecoding, https://crfm.stanford.edu/
2023/10/12/flashdecoding.html). Chunks begin at fixed places for a shape of step, and are joined in order.

Triton comes with PyTorch for CUDA. With `TRITON_INTERPRET=1` in the environment it runs on a CPU, for tests.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from engine.runner import BLOCK_SIZE

Tensor = torch.Tensor

_SMALLEST_TILE, _LARGEST_TILE = 16, 128  # rows of a tile: matrix units take 16 or more
_LARGEST_ACCUMULATOR = 1 << 14  # numbers of a tile's values, which stay in registers
_MANY_NUMBERS = 1 << 12  # of a tile's values: as many as four warps hold with ease
_PLACES = 64  # that are read at a time
_PROGRAMS = 1024  # of a step and layer, about: some for each multiprocessor


def fits(rows: int, share: int, width: int) -> bool:
    """Whether there is a tile for `rows` rows of a request and `share` query heads of a key head."""
    tile = _tile(rows, share)
    return (
        tile <= _LARGEST_TILE
        and width == triton.next_power_of_2(width)
        and tile * width <= _LARGEST_ACCUMULATOR
    )


def attend(
    of: Mapping[str, Tensor], queries: Tensor, layer: tuple[Tensor, Tensor], *, scale: float, window: int
) -> Tensor:
    """Attention of a group of requests, whose new rows are in the cache.

    Args:
        of: the group; see `engine.torch_steps.Group`.
        queries: [tokens, key heads, query heads of each, width].
        layer: keys and values, [rows of all blocks, key heads, width].
        scale: of scores.
        window: rows that a row sees, itself among them; 0: all.

    Returns:
        [requests * rows, heads * width]; zeros for padding.
    """
    requests, rows = of["begins"].shape
    _, heads, share, width = queries.shape
    tile, places = _tile(rows, share), of["tables"].shape[1] * BLOCK_SIZE
    wanted = max(1, min(_PROGRAMS // (requests * heads), triton.cdiv(places, 2 * _PLACES)))
    span = triton.cdiv(triton.cdiv(places, wanted), _PLACES) * _PLACES
    chunks = triton.cdiv(places, span)
    mixed = queries.new_empty((requests, heads, chunks, tile, width), dtype=torch.float32)
    tops, sums = queries.new_empty((2, requests, heads, chunks, tile), dtype=torch.float32)
    found = queries.new_empty((requests * rows, heads * share * width))
    sizes = {"SHARE": share, "HEADS": heads, "WIDTH": width, "TILE": tile}
    _read_chunk[(requests, heads, chunks)](
        queries.contiguous(),
        *layer,
        *(mixed, tops, sums),
        *(of[name] for name in ("tokens", "begins", "ends", "depths", "past", "counts", "tables")),
        scale,
        *(rows, span, chunks, of["tables"].shape[1]),
        **sizes,
        WINDOW=window,
        BLOCK=BLOCK_SIZE,
        PLACES=_PLACES,
        num_warps=4 if tile * width <= _MANY_NUMBERS else 8,
    )
    _join_chunks[(requests, heads)](
        mixed, tops, sums, found, of["past"], of["counts"], rows, span, chunks, **sizes
    )
    return found


def _tile(rows: int, share: int) -> int:
    return max(_SMALLEST_TILE, int(triton.next_power_of_2(rows * share)))


@triton.jit(do_not_specialize=["rows", "span", "chunks", "table"])
def _read_chunk(
    queries,
    keys,
    values,
    mixed,
    tops,
    sums,
    tokens,
    begins,
    ends,
    depths,
    past,
    counts,
    tables,
    scale,
    rows,
    span,
    chunks,
    table,
    SHARE: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
):
    request, head, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    before = tl.load(past + request).to(tl.int32)
    length = before + tl.load(counts + request).to(tl.int32)
    first = chunk * span
    if first >= length:
        return
    of_tile = tl.arange(0, TILE)
    real = of_tile < rows * SHARE
    row = request * rows + of_tile % rows
    token = tl.load(tokens + row, mask=real, other=0)
    begin = tl.load(begins + row, mask=real, other=-1)
    depth = tl.load(depths + row, mask=real, other=0)
    column = tl.arange(0, WIDTH)
    source = (token * HEADS + head) * SHARE + of_tile // rows
    query = tl.load(queries + source[:, None] * WIDTH + column[None, :], mask=real[:, None], other=0.0)

    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    sum_of_values = tl.zeros([TILE, WIDTH], tl.float32)
    for start in range(first, tl.minimum(first + span, length), PLACES):
        place = start + tl.arange(0, PLACES)
        written = place < length
        block = tl.load(tables + request * table + place // BLOCK, mask=written, other=0)
        lies = ((block * BLOCK + place % BLOCK) * HEADS + head)[:, None] * WIDTH + column[None, :]
        key = tl.load(keys + lies, mask=written[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        new = place - before
        is_new = written & (new >= 0)
        its_begin = tl.load(begins + request * rows + new, mask=is_new, other=0)
        its_end = tl.load(ends + request * rows + new, mask=is_new, other=0)
        below = (its_begin[None, :] <= begin[:, None]) & (begin[:, None] < its_end[None, :])
        seen = written[None, :] & ((new < 0)[None, :] | below)
        if WINDOW > 0:
            its_depth = tl.load(depths + request * rows + new, mask=is_new, other=0)
            its_depth = tl.where(new < 0, new, its_depth)
            seen = seen & (its_depth[None, :] > depth[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        origin = tl.where(higher == float("-inf"), 0.0, higher)  # nothing has been seen so far
        weights = tl.exp(scores - origin[:, None])
        fading = tl.exp(top - origin)
        value = tl.load(values + lies, mask=written[:, None], other=0.0)
        sum_of_values = sum_of_values * fading[:, None] + tl.dot(
            weights.to(value.dtype), value, input_precision="ieee"
        )
        total = total * fading + tl.sum(weights, 1)
        top = higher
    place_of_tile = ((request * HEADS + head) * chunks + chunk) * TILE + of_tile
    tl.store(tops + place_of_tile, top)
    tl.store(sums + place_of_tile, total)
    tl.store(mixed + place_of_tile[:, None] * WIDTH + column[None, :], sum_of_values)


@triton.jit(do_not_specialize=["rows", "span", "chunks"])
def _join_chunks(
    mixed,
    tops,
    sums,
    found,
    past,
    counts,
    rows,
    span,
    chunks,
    SHARE: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    request, head = tl.program_id(0), tl.program_id(1)
    length = (tl.load(past + request) + tl.load(counts + request)).to(tl.int32)
    of_tile, column = tl.arange(0, TILE), tl.arange(0, WIDTH)
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    sum_of_values = tl.zeros([TILE, WIDTH], tl.float32)
    for chunk in range(0, tl.cdiv(length, span)):
        place_of_tile = ((request * HEADS + head) * chunks + chunk) * TILE + of_tile
        its_top = tl.load(tops + place_of_tile)
        higher = tl.maximum(top, its_top)
        origin = tl.where(higher == float("-inf"), 0.0, higher)
        fading, its_share = tl.exp(top - origin), tl.exp(its_top - origin)
        its_values = tl.load(mixed + place_of_tile[:, None] * WIDTH + column[None, :])
        sum_of_values = sum_of_values * fading[:, None] + its_values * its_share[:, None]
        total = total * fading + tl.load(sums + place_of_tile) * its_share
        top = higher
    values = sum_of_values / tl.where(total > 0, total, 1.0)[:, None]
    target = ((request * rows + of_tile % rows) * HEADS + head) * SHARE + of_tile // rows
    tl.store(
        found + target[:, None] * WIDTH + column[None, :],
        values.to(found.dtype.element_ty),
        mask=(of_tile < rows * SHARE)[:, None],
    )
