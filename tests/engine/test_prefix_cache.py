"""What is kept of ended requests, checked against a cache that knows how each of its rows was computed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.prefix_cache import Allocation, PrefixCache

SIZE, BLOCKS = 4, 10
TEXT = [0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0]
Row = tuple[tuple[int, ...], int, str]
"""What a row holds: its tokens up to itself, how many of them were read as a prompt, and for whom."""
SALTS = ("", "a")


@dataclass
class Running:
    allocation: Allocation
    tokens: list[int]
    prompt_length: int
    rows: int
    salt: str
    drafts: bool = False
    drafted: int = 0


class Memory:
    """The rows of all blocks, as exact as their history: the target's, and those of a drafter that reads ahead."""

    def __init__(self, rows_ahead: int | None = None) -> None:
        self._rows: dict[tuple[int, int], Row] = {}
        self._drafter: dict[tuple[int, int], tuple[int, ...]] = {}
        self._ahead = rows_ahead or 0

    def draft(self, request: Running) -> None:
        """The drafter computes what it can."""
        for row in range(request.drafted, len(request.tokens) - self._ahead):
            block = request.allocation.blocks[row // SIZE]
            self._drafter[block, row % SIZE] = tuple(request.tokens[: row + 1 + self._ahead])
        request.drafted = max(request.drafted, len(request.tokens) - self._ahead)

    def check_drafter(self, request: Running) -> None:
        for row in range(request.drafted):
            block = request.allocation.blocks[row // SIZE]
            assert self._drafter[block, row % SIZE] == tuple(request.tokens[: row + 1 + self._ahead])

    def write(self, request: Running, first: int, end: int) -> None:
        for row in range(first, end):
            block = request.allocation.blocks[row // SIZE]
            self._rows[block, row % SIZE] = self.right(request, row)

    def read(self, request: Running, row: int) -> Row:
        return self._rows[request.allocation.blocks[row // SIZE], row % SIZE]

    @staticmethod
    def right(request: Running, row: int) -> Row:
        """A prompt row is the same in every prompt of two tokens or more; a decoded one only after its prompt."""
        length = request.prompt_length
        kind = length if row >= length or length == 1 else 0
        return tuple(request.tokens[: row + 1]), kind, request.salt


def start(
    cache: PrefixCache,
    memory: Memory,
    tokens: list[int],
    prompt_length: int,
    more: int,
    *,
    salt: str = "",
    drafts: bool = False,
) -> Running | None:
    """Allocation blocks, see that the rows taken over are what computing them would give, and compute the rest."""
    rows = len(tokens) + more
    allocation = cache.allocate(tokens, prompt_length, rows, drafts=[True] if drafts else (), salt=salt)
    if allocation is None:
        return None
    request = Running(
        allocation, list(tokens), prompt_length, rows, salt, drafts, *(allocation.drafted or [0])
    )
    memory.check_drafter(request)
    assert len(allocation.blocks) == -(-rows // SIZE)
    assert len(set(allocation.blocks)) == len(allocation.blocks)
    assert allocation.cached < len(tokens)
    if allocation.cached < prompt_length:  # a part of the prompt is to be read, and not a single token
        assert prompt_length == 1 or prompt_length - allocation.cached > 1
    for row in range(allocation.cached):
        assert memory.read(request, row) == memory.right(request, row)
    memory.write(request, allocation.cached, len(tokens))
    if drafts:
        memory.draft(request)
    return request


class CacheMachine(RuleBasedStateMachine):
    """Requests that often begin alike, end at any time and are continued, rightly or not."""

    @initialize(reuse=st.booleans(), ahead=st.sampled_from([None, 0, 1, 2]))
    def begin(self, reuse: bool, ahead: int | None) -> None:
        self.cache = PrefixCache(BLOCKS, SIZE, reuse=reuse, rows_ahead=[ahead])
        self.memory, self.ahead = Memory(ahead), ahead
        self.running: list[Running] = []
        self.ended: list[Running] = []

    @rule(
        length=st.integers(1, 14),
        own=st.lists(st.integers(0, 1), max_size=2),
        more=st.integers(1, 9),
        drafts=st.booleans(),
        salt=st.sampled_from(SALTS),
    )
    def submit(self, length: int, own: list[int], more: int, drafts: bool, salt: str) -> None:
        tokens = [*TEXT[:length], *own]
        self._start(tokens, len(tokens), more, drafts=drafts, salt=salt)

    @precondition(lambda self: self.ended)
    @rule(
        data=st.data(),
        token=st.integers(0, 1),
        more=st.integers(1, 5),
        drafts=st.booleans(),
        salt=st.sampled_from(SALTS),
    )
    def go_on(self, data: st.DataObject, token: int, more: int, drafts: bool, salt: str) -> None:
        """A continuation of something that has ended, or of a part of it, by one token more."""
        earlier = data.draw(st.sampled_from(self.ended))
        length = data.draw(st.integers(1, len(earlier.tokens)))
        prompt_length = data.draw(st.sampled_from([earlier.prompt_length, 1, length]))
        tokens = [*earlier.tokens[:length], token]
        self._start(tokens, min(prompt_length, length), more, drafts=drafts, salt=salt)

    def _start(self, tokens: list[int], prompt_length: int, more: int, *, drafts: bool, salt: str) -> None:
        request = start(self.cache, self.memory, tokens, prompt_length, more, salt=salt, drafts=drafts)
        held = {block for item in self.running for block in item.allocation.blocks}
        if request:
            self.running.append(request)
            if drafts and self.ahead is not None:  # its drafter lacks nothing of what was taken over
                assert list(request.allocation.drafted) == [request.allocation.cached]
        else:
            assert len(held) + -(-(len(tokens) + more) // SIZE) > BLOCKS

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), max_size=9), computed=st.integers(0, 23))
    def decode_and_end(self, data: st.DataObject, tokens: list[int], computed: int) -> None:
        request = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        first = len(request.tokens)
        request.tokens += tokens[: request.rows - first]
        self.memory.write(request, first, len(request.tokens))
        if request.drafts:
            self.memory.draft(request)
        kept = request.tokens[: min(computed, len(request.tokens))]
        drafted = min(request.drafted, len(kept))
        self.cache.end(request.allocation.blocks, kept, request.prompt_length, [drafted], salt=request.salt)
        if kept:
            self.ended.append(Running(request.allocation, kept, request.prompt_length, 0, request.salt))

    @invariant()
    def used_counts_what_runs(self) -> None:
        assert self.cache.used == len({block for item in self.running for block in item.allocation.blocks})

    @invariant()
    def what_runs_is_never_overwritten(self) -> None:
        for request in self.running:
            for row in range(len(request.tokens)):
                assert self.memory.read(request, row) == self.memory.right(request, row)
            self.memory.check_drafter(request)

    def teardown(self) -> None:
        for request in self.running:
            self.cache.end(
                request.allocation.blocks, request.tokens, request.prompt_length, salt=request.salt
            )
        self.cache.clear()
        assert self.cache.used == 0
        assert self.cache._pool.free == BLOCKS
        assert not self.cache._of_prompt


def test_any_sequence_of_requests() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        CacheMachine,
        settings=settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True),
    )


@pytest.fixture
def cache() -> PrefixCache:
    return PrefixCache(BLOCKS, SIZE, reuse=True)


def after(cache: PrefixCache, tokens: list[int], prompt_length: int) -> None:
    """A request that has come and gone, all of it computed."""
    allocation = cache.allocate(tokens[:prompt_length], prompt_length, len(tokens))
    assert allocation is not None
    cache.end(allocation.blocks, tokens, prompt_length)


def cached(cache: PrefixCache, tokens: list[int], prompt_length: int) -> int:
    allocation = cache.allocate(tokens, prompt_length, len(tokens) + 1)
    assert allocation is not None
    cache.end(allocation.blocks, (), prompt_length)
    return allocation.cached


PROMPT = list(range(10))


def test_a_prompt_shares_whole_blocks_of_prompts_that_begin_alike(cache: PrefixCache) -> None:
    after(cache, PROMPT, 10)
    assert cached(cache, [*PROMPT, 90, 91], 12) == 8
    assert cached(cache, [*PROMPT[:6], 90, 91], 8) == 4
    assert cached(cache, PROMPT, 10) == 8
    assert cached(cache, PROMPT[:9], 9) == 4  # a single token would be left of 9
    assert cached(cache, [90, *PROMPT], 11) == 0


def test_decoded_rows_serve_their_continuation_and_nobody_else(cache: PrefixCache) -> None:
    after(cache, [*PROMPT, 20, 21, 22], 10)
    assert cached(cache, [*PROMPT, 20, 21, 22, 23, 24], 15) == 8
    assert cached(cache, [*PROMPT, 20, 21, 22, 23, 24], 11) == 8
    assert cached(cache, [*PROMPT, 20, 21, 22, 23, 24], 10) == 13


def test_a_continuation_that_departs_takes_what_agrees(cache: PrefixCache) -> None:
    after(cache, [*PROMPT, 20, 21, 22], 10)
    assert cached(cache, [*PROMPT, 20, 90, 91], 10) == 11


def test_a_block_that_others_read_is_not_written_to(cache: PrefixCache) -> None:
    """Two continuations of one sequence: the first shares its whole blocks, the second departs within one."""
    after(cache, [*PROMPT, *range(20, 26)], 10)
    reading = cache.allocate([*PROMPT, 20, 21, 90], 10, 16)
    assert reading is not None and reading.cached == 12
    departing = cache.allocate([*PROMPT, 20, 91], 10, 16)
    assert departing is not None and departing.cached == 8
    assert reading.blocks[2] not in departing.blocks


def test_what_was_taken_over_is_kept_no_longer(cache: PrefixCache) -> None:
    """Its last block now holds other rows."""
    after(cache, [*PROMPT, 20, 21, 22], 10)
    allocation = cache.allocate([*PROMPT, 90, 91], 10, 14)
    assert allocation is not None and allocation.cached == 10
    cache.end(allocation.blocks, (), 10)
    assert cached(cache, [*PROMPT, 20, 21, 22, 23], 10) == 0


def test_the_last_token_is_always_run(cache: PrefixCache) -> None:
    after(cache, [*PROMPT, 20, 21, 22], 10)
    assert cached(cache, [*PROMPT, 20, 21], 10) == 11


def test_least_recently_used_goes_first(cache: PrefixCache) -> None:
    first, second, third = ([number] * 16 for number in (50, 60, 70))
    after(cache, first, 16)
    after(cache, second, 16)
    assert cached(cache, first, 16) == 12
    after(cache, third, 16)  # four of ten blocks each
    assert [cached(cache, tokens, 16) for tokens in (first, third)] == [12, 12]
    assert cached(cache, second, 16) == 0


def test_kept_blocks_do_not_stand_in_anybodys_way(cache: PrefixCache) -> None:
    after(cache, list(range(40)), 30)
    allocation = cache.allocate([1, 2], 2, BLOCKS * SIZE)
    assert allocation is not None and len(allocation.blocks) == BLOCKS
    assert cache.used == BLOCKS
    assert cache.allocate([1, 2], 2, 3) is None


def test_running_requests_share_a_prompt(cache: PrefixCache) -> None:
    after(cache, PROMPT, 10)
    leases = [cache.allocate(PROMPT, 10, 12) for _ in range(3)]
    assert all(allocation is not None and allocation.reused == 2 for allocation in leases)
    assert cache.used == 2 + 3


def test_rows_of_an_answer_serve_prompts_where_rows_are_of_one_kind() -> None:
    text = list(range(20, 40))
    for one_kind, found in ((False, 2 * SIZE), (True, 4 * SIZE)):
        cache = PrefixCache(BLOCKS, SIZE, reuse=True, one_kind_of_rows=one_kind)
        allocation = cache.allocate(text[:10], 10, 18)
        assert allocation is not None
        cache.end(allocation.blocks, text[:17], 10)
        after = cache.allocate(text, 20, 20)
        assert after is not None and after.cached == found


def test_requests_of_other_salts_share_nothing(cache: PrefixCache) -> None:
    allocation = cache.allocate(PROMPT, 10, 13, salt="one")
    assert allocation is not None
    cache.end(allocation.blocks, [*PROMPT, 20, 21, 22], 10, salt="one")
    for tokens, length in ((PROMPT, 8), ([*PROMPT, 20, 21, 22, 23], 13)):
        for salt, found in (("two", 0), ("", 0), ("one", length)):
            taken = cache.allocate(tokens, 10, len(tokens) + 1, salt=salt)
            assert taken is not None and taken.cached == found
            cache.end(taken.blocks, (), 10, salt=salt)
            if taken.cached == 13:  # it wrote to the last block
                return


def test_without_reuse_nothing_is_kept() -> None:
    cache = PrefixCache(BLOCKS, SIZE, reuse=False)
    after(cache, PROMPT, 10)
    assert cached(cache, PROMPT, 10) == 0
    assert cache._pool.free == BLOCKS


@pytest.mark.parametrize(("ahead", "expected"), [(None, 8), (0, 8), (1, 4), (5, 0)])
def test_tokens_that_a_drafter_reads_ahead_must_agree_too(ahead: int | None, expected: int) -> None:
    cache = PrefixCache(BLOCKS, SIZE, reuse=True, rows_ahead=[ahead])
    allocation = cache.allocate(PROMPT, 10, 12, drafts=[True])
    assert allocation is not None
    cache.end(allocation.blocks, PROMPT, 10, [10 - (ahead or 0)])
    found = cache.allocate([*PROMPT[:8], 90, 91, 92, 93], 12, 13, drafts=[True])
    assert found is not None and [found.cached] == found.drafted == [expected]


def test_whoever_is_drafted_for_takes_over_what_has_the_drafters_rows() -> None:
    cache = PrefixCache(BLOCKS, SIZE, reuse=True, rows_ahead=[1])
    after(cache, PROMPT, 10)
    for drafts, expected in ((True, 0), (False, 8)):
        allocation = cache.allocate(PROMPT, 10, 11, drafts=[drafts])
        assert allocation is not None and (allocation.cached, allocation.drafted) == (expected, [0])
        cache.end(allocation.blocks, (), 10)


@pytest.mark.parametrize(("most_again", "cached"), [(None, 0), (8, 0), (7, 8)])
def test_a_drafter_does_without_a_request_where_too_much_would_be_read_again(
    most_again: int | None, cached: int
) -> None:
    cache = PrefixCache(BLOCKS, SIZE, reuse=True, rows_ahead=[1, None])
    after(cache, PROMPT, 10)
    found = cache.allocate(PROMPT, 10, 11, drafts=[True, True], most_again=most_again)
    assert found is not None and found.cached == cached
    assert list(found.able) == [not cached, True], "one that keeps no rows lacks none"


def test_of_several_drafters_those_that_draft_have_to_have_their_rows() -> None:
    cache = PrefixCache(BLOCKS, SIZE, reuse=True, rows_ahead=[0, 0])
    allocation = cache.allocate(PROMPT, 10, 12)
    assert allocation is not None
    cache.end(allocation.blocks, PROMPT, 10, [10, 0])
    for drafts, expected in (([True, False], 8), ([False, True], 0), ([True, True], 0)):
        found = cache.allocate(PROMPT, 10, 11, drafts=drafts)
        assert found is not None and found.cached == expected
        cache.end(found.blocks, (), 10)


def test_a_drafters_rows_are_not_lost_to_a_text_without_them() -> None:
    cache = PrefixCache(BLOCKS, SIZE, reuse=True, rows_ahead=[1])
    for drafted, drafts in ((9, True), (0, False)):
        allocation = cache.allocate(PROMPT, 10, 14, drafts=[drafts])
        assert allocation is not None
        cache.end(allocation.blocks, [*PROMPT, 20, 21], 10, [drafted] if drafted else allocation.drafted)
    allocation = cache.allocate(PROMPT, 10, 11, drafts=[True])
    assert allocation is not None and allocation.cached == 4
