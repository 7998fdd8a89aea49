"""The runner's promise, bit for bit: a token's logits depend on its context and on nothing else.

Every comparison here is of equality, not of closeness. It is what lets greedy output be the same token for
token with and without speculation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.attention_kernels import Attention, KernelName
from engine.compiled_runner import CompiledRunner
from engine.runner import SequenceInput
from tests.engine.cache_rows import poison
from tests.runners import openvino_runner
from tests.tiny import FULL_SIZE, KERNELS, SEVERAL_THREADS, TinyTargets

Logits = NDArray[np.float32]

PROMPT, LENGTH = 45, 80
_BLOCKS_EACH = 3
TINY = [
    (variant, precision, kernel)
    for variant in ("llama", "llama heads of 64", "qwen3", "mistral window 9", "smollm3", "gemma3_text")
    for precision in ("fp32", "int8")
    for kernel in KERNELS
]
TINY += [("llama biases", "int4", kernel) for kernel in KERNELS] + [("qwen3", "int4", KERNELS[0])]


class Contexts:
    """Several requests on one runner, each with its own random text and its own cache blocks."""

    def __init__(self, runner: CompiledRunner, seed: int = 0) -> None:
        self.runner = runner
        self._random = np.random.default_rng(seed)
        self._texts: list[list[int]] = []

    def add(self) -> int:
        """A new request; its index."""
        self._texts.append(self._random.integers(0, self.runner.vocab_size, LENGTH).tolist())
        return len(self._texts) - 1

    def part(self, request: int, begin: int, end: int, text: int | None = None) -> SequenceInput:
        """Tokens begin..end - 1 of a text (the request's own by default) as decoding takes them."""
        tokens = self._texts[request if text is None else text][begin:end]
        return SequenceInput(tokens, begin, self._blocks(request))

    def chunk(self, request: int, begin: int, end: int, text: int | None = None) -> SequenceInput:
        """The same as part of a prompt, with the logits of its last token."""
        tokens = self._texts[request if text is None else text][begin:end]
        return SequenceInput(
            tokens, begin, self._blocks(request), is_prompt=True, logits_from=end - begin - 1
        )

    def run(self, *inputs: SequenceInput) -> Logits:
        """One forward pass."""
        return self.runner.forward(inputs).copy()

    def prefill(self, request: int, chunks: Sequence[int] = (PROMPT,), text: int | None = None) -> Logits:
        """Read a prompt in chunks; logits [1, V] of its last token."""
        begin = 0
        for size in chunks:
            logits = self.run(self.chunk(request, begin, begin + size, text))
            begin += size
        return logits

    def decode(self, request: int, begin: int, end: int, text: int | None = None) -> Logits:
        """Token by token; logits [end - begin, V]."""
        return np.concatenate([self.run(self.part(request, row, row + 1, text)) for row in range(begin, end)])

    def _blocks(self, request: int) -> range:
        return range(_BLOCKS_EACH * request, _BLOCKS_EACH * (request + 1))


@pytest.fixture(params=TINY, ids=[", ".join(how) for how in TINY])
def contexts(request: pytest.FixtureRequest, tiny_targets: TinyTargets) -> Contexts:
    return Contexts(tiny_targets.runner(*request.param, threads=SEVERAL_THREADS))


def check_verified_chains(contexts: Contexts, lengths: Sequence[int]) -> None:
    """Chains of each length give what single tokens give, whatever was drafted and rejected before."""
    plain, verified, other = contexts.add(), contexts.add(), contexts.add()
    contexts.prefill(plain)
    expected = contexts.decode(plain, PROMPT, LENGTH)
    contexts.prefill(verified, text=plain)
    for length in lengths:
        found = []
        for begin in range(PROMPT, LENGTH, length):
            end = min(begin + length, LENGTH)
            contexts.run(contexts.part(verified, begin, min(begin + 16, LENGTH), text=other))  # rejected
            found.append(contexts.run(contexts.part(verified, begin, end, text=plain)))
        np.testing.assert_array_equal(np.concatenate(found), expected, err_msg=f"chains of {length}")


def check_prompt_chunks(contexts: Contexts, cuts: Sequence[Sequence[int]]) -> None:
    """Neither the prompt's own logits nor those of later tokens show how the prompt was cut."""
    whole, cut = contexts.add(), contexts.add()
    expected = contexts.prefill(whole)
    after = contexts.decode(whole, PROMPT, PROMPT + 4)
    for sizes in cuts:
        assert sum(sizes) == PROMPT
        message = f"cut into {sizes}"
        np.testing.assert_array_equal(contexts.prefill(cut, sizes, whole), expected, err_msg=message)
        found = contexts.decode(cut, PROMPT, PROMPT + 4, whole)
        np.testing.assert_array_equal(found, after, err_msg=message)


def check_kinds(contexts: Contexts) -> None:
    """Rows of a prompt, in chunks of any length, are those of decoded tokens."""
    decoded, read = contexts.add(), contexts.add()
    contexts.prefill(decoded)
    expected = contexts.decode(decoded, PROMPT, LENGTH)
    for sizes in ([LENGTH], [2, 3, LENGTH - 5], [LENGTH - 33, 32, 1]):
        last = contexts.prefill(read, sizes, decoded)
        np.testing.assert_array_equal(last, expected[-1:], err_msg=f"cut into {sizes}")


def check_neighbours(contexts: Contexts, batch_sizes: Sequence[int], steps: int) -> None:
    """One request's logits while others decode, verify chains, read prompts, join and leave."""
    alone = contexts.add()
    first = contexts.prefill(alone)
    expected = contexts.decode(alone, PROMPT, PROMPT + steps)
    others = [contexts.add() for _ in range(max(batch_sizes))]
    beside = contexts.add()
    for size in batch_sizes:
        for other in others[: size - 1]:
            contexts.prefill(other)
        for position, mix in enumerate(_mixes(contexts, others[: size - 1], steps)):
            before = sum(len(item.tokens) - item.logits_from for item in mix[0])
            if position == 0:
                logits = contexts.run(*mix[0], contexts.chunk(beside, 0, PROMPT, alone), *mix[1])
                np.testing.assert_array_equal(logits[before], first[0], err_msg=f"prompt, batch {size}")
            row = PROMPT + position
            logits = contexts.run(*mix[0], contexts.part(beside, row, row + 1, alone), *mix[1])
            np.testing.assert_array_equal(logits[before], expected[position], err_msg=f"batch {size}")


def _mixes(
    contexts: Contexts, others: Sequence[int], steps: int
) -> Iterator[tuple[list[SequenceInput], list[SequenceInput]]]:
    """For each step what stands before and what stands after the request under test."""
    reader = contexts.add()
    for step in range(steps):
        decoding = [
            contexts.part(other, PROMPT, PROMPT + 1 + (step + index) % 5)
            for index, other in enumerate(others)
            if (step + index) % 4
        ]
        half = len(decoding) // 2
        reading = [contexts.chunk(reader, 0, 7 + step)] if step % 3 == 1 else []
        yield decoding[:half], [*decoding[half:], *reading]


def test_verified_chains(contexts: Contexts) -> None:
    check_verified_chains(contexts, range(2, 17))


def test_prompt_chunks(contexts: Contexts) -> None:
    check_prompt_chunks(contexts, [[2, 43], [43, 2], [22, 23], [32, 13], [9] * 5, [2] * 21 + [3]])


def test_neighbours(contexts: Contexts) -> None:
    check_neighbours(contexts, range(1, 9), steps=8)


def test_the_head_sees_one_row_or_many(contexts: Contexts) -> None:
    """The matrix product with the vocabulary has as many rows as logits are wanted."""
    request, again = contexts.add(), contexts.add()
    one = contexts.prefill(request)
    chunk = contexts.chunk(again, 0, PROMPT, request)
    many = contexts.run(SequenceInput(chunk.tokens, 0, chunk.blocks, is_prompt=True))
    np.testing.assert_array_equal(many[-1:], one)
    for size in (2, 5, 16):
        some = contexts.run(
            SequenceInput(chunk.tokens, 0, chunk.blocks, is_prompt=True, logits_from=PROMPT - size)
        )
        np.testing.assert_array_equal(some, many[-size:])


def test_a_prompt_of_a_single_token(contexts: Contexts) -> None:
    alone, beside, other = contexts.add(), contexts.add(), contexts.add()
    first = contexts.prefill(alone, [1])
    after = contexts.decode(alone, 1, 9)
    contexts.prefill(other)
    mixed = contexts.run(
        contexts.part(other, PROMPT, PROMPT + 3),
        contexts.chunk(beside, 0, 1, alone),
        contexts.chunk(contexts.add(), 0, 20),
    )
    np.testing.assert_array_equal(mixed[3:4], first)
    np.testing.assert_array_equal(contexts.run(contexts.part(beside, 1, 9, alone)), after)


def test_nothing_is_read_from_unwritten_rows(contexts: Contexts) -> None:
    """Blocks come back from other requests with anything in them."""
    request, again = contexts.add(), contexts.add()
    first = contexts.prefill(request)
    after = contexts.decode(request, PROMPT, PROMPT + 3)
    graph: Any = contexts.runner.graph
    poison(graph.kernel, range(_BLOCKS_EACH * again, _BLOCKS_EACH * (again + 1)))
    np.testing.assert_array_equal(contexts.prefill(again, [20, 25], request), first)
    np.testing.assert_array_equal(contexts.run(contexts.part(again, PROMPT, PROMPT + 3, request)), after)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("precision", ["int4", "int8", "fp32"])
def test_all_of_it_at_full_size_on_every_core(
    precision: str, kernel: KernelName, tiny_targets: TinyTargets
) -> None:
    engine = tiny_targets.engine(FULL_SIZE, precision)
    contexts = Contexts(openvino_runner(engine, num_blocks=72, attention=Attention(kernel)))
    check_verified_chains(contexts, (2, 8, 16))
    check_prompt_chunks(contexts, [[2, 43], [32, 13]])
    check_neighbours(contexts, (1, 2, 8), steps=2)
    assert contexts.runner.one_kind_of_rows == (kernel == "native")
    if kernel == "native":
        check_kinds(contexts)


def test_a_window_of_blocks_is_read_alike_by_both_kernels(tiny_targets: TinyTargets) -> None:
    """A token that sees its first and its last block alone, at its own position."""
    found = []
    for kernel in KERNELS:
        runner = tiny_targets.runner("llama", "fp32", kernel)
        text = np.random.default_rng(3).integers(0, runner.vocab_size, 97).tolist()
        runner.forward([SequenceInput(text[:96], 0, range(4), is_prompt=True, logits_from=96)])
        window = SequenceInput(text[96:], 64, (0, 2, 3), position=96)
        found.append(runner.forward([window]).copy())
        other = runner.forward([replace(window, position=None)])
        assert np.abs(found[-1] - other).max() > 1e-3, "the position tells"
    for logits in found[1:]:
        np.testing.assert_allclose(logits, found[0], atol=1e-4)
