"""Keeps the KV cache of requests that have ended, for later ones whose tokens begin alike.

What is kept costs nobody anything: the least recently used sequences give their blocks back as soon as an
admission needs them, and no gauge counts them as used.

Reuse is bit for bit. int8 engines quantise activations as they go, which turns a difference of 1e-7 in a row
into another token sooner or later, so a row may only be taken over where computing it again would give the same
bits. With the kit's own attention kernel a row depends on its token and those before it alone, so whatever begins
alike is taken over, an earlier answer included. OpenVINO's kernel makes two kinds of rows, each equal among
themselves however they came about: rows of a *prompt*, read in chunks of two tokens or more, and rows of *decoded*
tokens, each computed as a sequence of its own. For one and the same token the two kinds need not be equal. Hence,
on that kernel:

 * a prompt's rows serve every later prompt that begins alike;
 * decoded rows serve only a continuation: a request that says how many of its tokens earlier calls have emitted
   (`GenerationRequest.continued`), and only if its prompt is the very prompt they were decoded after;
 * what is left of a prompt to be read is never a single token. (A prompt of a single token is computed like a
   decoded one; it fills no block, so it shares nothing with longer ones.)

Drafters may keep rows of their own in the same blocks. Where one makes them from hidden states, nobody could make them
again without running the target, so a request that is drafted for takes over only what has both: otherwise its drafter
would know less of the text than if nothing had been reused, and fewer of its tokens would be accepted. Where that would
cost more than drafting brings, the target's rows are taken over and the drafter does without the request. Such a row
may also depend on a few tokens after its own (`rows_ahead`), so these have to agree as well.

Whole blocks are shared, read-only, among any number of requests. A continuation also takes over the last block,
half full, of the sequence it continues, if nobody else holds it.

Requests may be salted; then they share with those of the same salt alone. It parts those who must not learn from the
time that an answer takes what others have asked, and makes a load test's prompts new to the cache.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.kv_cache import BlockPool

Tokens = NDArray[np.int32]
_Prompt = tuple[str, bytes]  # salt and tokens


@dataclass(frozen=True, slots=True)
class Allocation:
    """Cache blocks of one request: the first `cached` rows are computed, in `reused` blocks of other requests.

    The first `drafted[i]` of them hold rows of drafter i, too; `able[i]` says whether it lacks none, so that it can
    draft.
    """

    blocks: list[int]
    cached: int
    reused: int
    drafted: Sequence[int]
    able: Sequence[bool]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A sequence whose rows are all computed, the first `prompt_length` of them (or fewer) as a prompt.

    The first `drafted[i]` of them are those of drafter i as well.
    """

    tokens: Tokens
    prompt_length: int
    blocks: Sequence[int]
    drafted: Sequence[int]
    salt: str

    @property
    def prompt(self) -> "_Prompt":
        """Sequences of the same prompt are looked up by it."""
        return self.salt, self.tokens[: self.prompt_length].tobytes()


class PrefixCache:
    """The cache blocks of an engine: in use by running requests, or kept for later ones."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        reuse: bool,
        rows_ahead: Sequence[int | None] = (),
        one_kind_of_rows: bool = False,
    ) -> None:
        """Own `num_blocks` blocks.

        Args:
            num_blocks: how many.
            block_size: rows of a block.
            reuse: whether anything is kept.
            rows_ahead: of each drafter; see `speculators.base.Requirements`.
            one_kind_of_rows: see `engine.runner.Runner`.
        """
        self._pool = BlockPool(num_blocks, block_size)
        self._reuse, self._ahead, self._one_kind = reuse, tuple(rows_ahead), one_kind_of_rows
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # least recently used first
        self._of_prompt: dict[_Prompt, list[int]] = {}
        self._next_key = 0
        self._in_use: Counter[int] = Counter()

    @property
    def used(self) -> int:
        """Blocks that running requests hold."""
        return len(self._in_use)

    def allocate(
        self,
        tokens: Sequence[int],
        prompt_length: int,
        rows: int,
        *,
        drafts: Sequence[bool] = (),
        most_again: int | None = None,
        salt: str = "",
    ) -> Allocation | None:
        """Blocks for `rows` rows of a request that begins with `tokens`, or None if too many are in use.

        Args:
            tokens: all tokens that are known, at least one; the last of them is never taken as computed.
            prompt_length: how many of them are its prompt; the others were decoded by earlier calls.
            rows: rows that it can ever need, `len(tokens)` or more.
            drafts: of each drafter, whether it is to draft for it; none: nobody does.
            most_again: most tokens that are read again, though the target has them, since such a drafter does not;
                None: as many as there are.
            salt: it shares with requests of the same salt.
        """
        known = np.asarray(tokens, np.int32)
        nobody: list[int | None] = [None] * len(self._ahead)
        pairs = zip(self._ahead, drafts, strict=True) if drafts else ()
        ahead = [rows if wanted else None for rows, wanted in pairs] or nobody
        key, cached = self._longest(known, prompt_length, ahead, salt)
        # The target has no more than all of them, which spares most requests a second search.
        if most_again is not None and ahead != nobody and len(known) - cached > most_again:
            other, more = self._longest(known, prompt_length, nobody, salt)
            if more - cached > most_again:
                key, cached = other, more
        taken = list(self._kept[key].blocks[: self._pool.blocks_for(cached)]) if cached else []
        drafted = self._drafted(key, known, cached) if cached else [0] * len(self._ahead)
        missing = self._pool.blocks_for(rows) - len(taken)
        if len(self._in_use.keys() | set(taken)) + missing > self._pool.num_blocks:
            return None
        self._pool.hold(taken)
        if taken and cached % self._pool.block_size:
            self._drop(key)  # its last block will be written to
        elif taken:
            self._kept.move_to_end(key)
        while self._pool.free < missing:
            self._drop(next(iter(self._kept)))
        blocks = taken + (self._pool.allocate(rows - len(taken) * self._pool.block_size) or [])
        self._in_use.update(blocks)
        able = [rows is None or count >= cached for rows, count in zip(self._ahead, drafted, strict=True)]
        return Allocation(blocks, cached, len(taken), drafted, able)

    def end(
        self,
        blocks: Sequence[int],
        tokens: Sequence[int],
        prompt_length: int,
        drafted: Sequence[int] = (),
        *,
        salt: str = "",
    ) -> None:
        """Take blocks back from a request, and keep the rows of `tokens`, all of which are computed.

        Args:
            blocks: those of its allocation.
            tokens: the beginning of its text.
            prompt_length: how many of the text's tokens are its prompt.
            drafted: leading rows that hold what each drafter has computed; none: nothing.
            salt: of its allocation.
        """
        self._in_use.subtract(blocks)
        for block in blocks:
            if not self._in_use[block]:
                del self._in_use[block]
        if self._reuse and len(tokens):
            computed = drafted or [0] * len(self._ahead)
            self._keep(_Kept(np.asarray(tokens, np.int32), prompt_length, blocks, computed, salt))
        self._pool.release(blocks)

    def clear(self) -> None:
        """Forget everything that is kept."""
        while self._kept:
            self._drop(next(iter(self._kept)))

    def _keep(self, new: _Kept) -> None:
        """Keep a sequence instead of those that it continues, unless rows of a drafter go further there."""
        for key in list(self._of_prompt.get(new.prompt, ())):
            old = self._kept[key]
            further = any(then > now for then, now in zip(old.drafted, new.drafted, strict=True))
            if _common(old.tokens, new.tokens) == len(old.tokens) and not further:
                self._drop(key)
        held = new.blocks[: self._pool.blocks_for(len(new.tokens))]
        self._pool.hold(held)
        self._next_key += 1
        self._kept[self._next_key] = replace(new, blocks=held)
        self._of_prompt.setdefault(new.prompt, []).append(self._next_key)

    def _drop(self, key: int) -> None:
        kept = self._kept.pop(key)
        keys = self._of_prompt[kept.prompt]
        keys.remove(key)
        if not keys:
            del self._of_prompt[kept.prompt]
        self._pool.release(kept.blocks)

    def _drafted(self, key: int, tokens: Tokens, cached: int) -> list[int]:
        """How many of the rows that are taken over each drafter can take over."""
        kept = self._kept[key]
        same = _common(kept.tokens, tokens)
        pairs = zip(kept.drafted, self._ahead, strict=True)
        return [max(0, min(drafted, same - (ahead or 0), cached)) for drafted, ahead in pairs]

    def _longest(
        self, tokens: Tokens, prompt_length: int, ahead: Sequence[int | None], salt: str
    ) -> tuple[int, int]:
        """The kept sequence that serves most rows, and how many; 0 if none does."""
        same_prompt = self._of_prompt.get((salt, tokens[:prompt_length].tobytes()), ())
        best, most = self._best_of(same_prompt, tokens, prompt_length, ahead)
        if most >= prompt_length:
            return best, most
        same_salt = [key for key, kept in self._kept.items() if kept.salt == salt]
        return self._best_of(same_salt, tokens, prompt_length, ahead)

    def _best_of(
        self, keys: Iterable[int], tokens: Tokens, prompt_length: int, ahead: Sequence[int | None]
    ) -> tuple[int, int]:
        best, most = 0, 0
        for key in keys:
            rows = self._usable(self._kept[key], tokens, prompt_length, ahead)
            if rows > most:
                best, most = key, rows
        return best, most

    def _usable(self, kept: _Kept, tokens: Tokens, prompt_length: int, ahead: Sequence[int | None]) -> int:
        """Rows of a kept sequence that a request may take over; see the module's rules.

        `ahead` is that of each drafter whose rows must be there as well, None of the others.
        """
        common = same = _common(kept.tokens, tokens[:-1])
        for rows, drafted in zip(ahead, kept.drafted, strict=True):
            if rows is not None:
                same = max(0, min(same, common - rows, drafted))
        furthest = max((rows for rows in ahead if rows is not None), default=0)
        size = self._pool.block_size
        if kept.prompt_length == prompt_length <= same:
            whole = same // size
            if not same % size or self._pool.holders(kept.blocks[whole]) == 1:
                return same
            same = whole * size
            if same >= prompt_length:
                return same
        of_a_prompt = len(kept.tokens) if self._one_kind else kept.prompt_length
        rows = min(same, of_a_prompt - furthest, prompt_length - 2 - furthest)
        return max(0, rows // size * size)


def _common(left: Tokens, right: Tokens) -> int:
    """Length of the common beginning."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    return int(differs.argmax()) if differs.any() else length
