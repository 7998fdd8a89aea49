"""Suffix decoding: what followed the text's end where it stood before, by how often it did (arXiv 2411.04975).

A longer match is surer, and there are fewer of it. So every length of match is tried, from one token up: of the places
where the last m tokens stood, the continuation is followed that most of them share, for at most m tokens, as long as
the share does not fall below `LEAST_SHARE`. The sum of the shares is how many tokens are expected to be accepted, and
the draft with the greatest sum is proposed, the longer match on a tie. Places are those in the request's own text, and,
where that is asked for, those in answers to requests that ended before, and in texts that are given from the start (as
REST has them, arXiv 2311.08252); the greatest sum counts.

These are the rules and constants of the authors' implementation (Arctic Inference 0.1.1, which vLLM drafts with), where
they are read off a suffix tree. Here nothing is built: the places where the last tokens stood are searched for at
every draft, which takes some tenths of a millisecond for thousands of tokens, and the text is all the memory it takes.
Other than there, answers of others join the pool when they are complete, and a match in it has at least two tokens.

Example:
    >>> speculator = SuffixSpeculator(draft_length=3)
    >>> speculator.start(0, [5, 6, 7, 8, 9, 5, 6])
    >>> speculator.propose([0], [3])[0].tokens      # a match of two tokens is worth two
    (7, 8)
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speculators.base import Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.tree import EMPTY, TokenTree

LEAST_SHARE = 0.1
_LONGEST = 32  # match that is told from a longer one: it is worth more tokens than any draft has
_ANY = -1
END = -1  # stands between texts, and before and behind them
_POOL_TEXTS = 1000
_POOL_TOKENS = 1 << 20
# Tokens that are searched one by one before they are sorted; sorting them takes a few milliseconds.
_SEGMENT = 1 << 16
_TEXT_SEGMENTS = 8  # of texts that never change, since each takes a search
_MOST_PLACES = 512  # the newest, so that what stands everywhere costs no more than what is rare

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Places:
    """Where a text's last token stood before, n times.

    Attributes:
        before: the tokens up to there, [n, L], that one first and older ones after it; `END` before a text.
        after: the tokens that follow, [n, K]; `END` behind a text's end.
    """

    before: Tokens
    after: Tokens

    @classmethod
    def at(cls, text: Tokens, ends: NDArray[np.intp], longest: int, length: int) -> Places:
        """Of a buffer with margins of at least `longest` in front and `length` behind."""
        return cls(text[ends[:, None] - np.arange(longest)], text[ends[:, None] + np.arange(1, length + 1)])

    def draft(self, end: Tokens, length: int, own: int) -> tuple[list[int], list[float]]:
        """The continuation with the greatest sum of shares, and these.

        Args:
            end: the text's last tokens, the newest one first, [L].
            length: most tokens.
            own: how many of them count as searched, too: then the end itself is one of the places, at which nothing
                follows yet, and what was seen once is half sure.
        """
        differs = (self.before != end) | (end == END)
        matches = np.where(differs.any(axis=1), differs.argmax(axis=1), len(end))
        best: tuple[list[int], list[float]] = [], []
        for match in sorted(set(matches.tolist()) - {0}, reverse=True):
            if min(length, match) <= sum(best[1]):  # a shorter match is worth no more
                break
            rows = np.flatnonzero(matches >= match)
            found = self._followed(rows, min(length, match), 1 if match <= own else 0)
            if sum(found[1]) > sum(best[1]):
                best = found
        return best

    def _followed(self, rows: NDArray[np.intp], length: int, more: int) -> tuple[list[int], list[float]]:
        places = len(rows) + more
        tokens: list[int] = []
        shares: list[float] = []
        for depth in range(length):
            after = self.after[rows, depth]
            token, count = _commonest(after)
            if count < max(1, LEAST_SHARE * places):
                break
            tokens.append(token)
            shares.append(count / places)
            if count < len(rows):
                rows = rows[after == token]
        return tokens, shares


def _commonest(tokens: Tokens) -> tuple[int, int]:
    """Which token stands there how often, of equals the one that came first; texts' ends aside."""
    first = int(tokens[0])
    count = int(np.count_nonzero(tokens == first))
    if first != END and 2 * count > len(tokens):
        return first, count
    counts = Counter(tokens.tolist())
    counts.pop(END, None)
    return counts.most_common(1)[0] if counts else (END, 0)


class _Text:
    """A growing text, in a buffer with margins."""

    def __init__(self, margin: int) -> None:
        self._margin, self._length = margin, 0
        self._buffer = np.full(2 * margin + 256, END, np.int32)

    def extend(self, tokens: Sequence[int]) -> None:
        first = self._margin + self._length
        self._length += len(tokens)
        if self._length + 2 * self._margin > len(self._buffer):
            grown = np.full(2 * (self._length + 2 * self._margin), END, np.int32)
            grown[:first] = self._buffer[:first]
            self._buffer = grown
        self._buffer[first : first + len(tokens)] = tokens

    @property
    def tokens(self) -> Tokens:
        return self._buffer[self._margin : self._margin + self._length]

    def end(self, longest: int) -> Tokens:
        """The last tokens, the newest one first."""
        last = self._margin + self._length
        return self._buffer[last - longest : last][::-1]

    def places(self, longest: int, length: int) -> Places:
        """Where the last token stood before; if that is nearly everywhere, the newest ones after the one before it."""
        tokens = self.tokens
        ends = np.flatnonzero(tokens[:-1] == tokens[-1]) + self._margin
        if len(ends) > _MOST_PLACES and longest > 1:
            pairs = ends[self._buffer[ends - 1] == tokens[-2]]
            ends = pairs if len(pairs) else ends
        return Places.at(self._buffer, ends[-_MOST_PLACES:], longest, length)


class _Segment:
    """A part of the pool: texts one after another; once it is full, the pairs of tokens in it are sorted."""

    def __init__(self, size: int, margin: int) -> None:
        self._margin = margin
        self._buffer = np.full(size + 2 * margin, END, np.int32)
        self._filled = self._first = margin
        self._ends: deque[int] = deque()
        self._pairs: NDArray[np.int64] | None = None
        self._order: NDArray[np.int32]

    def has_room(self, tokens: int) -> bool:
        return self._filled + tokens + self._margin < len(self._buffer)

    def add(self, text: Tokens) -> None:
        self._buffer[self._filled : self._filled + len(text)] = text
        self._filled += len(text) + 1
        self._ends.append(self._filled)

    def close(self) -> None:
        self._buffer = self._buffer[: self._filled + self._margin].copy()
        pairs = self._buffer[:-1].astype(np.int64) << 32 | self._buffer[1:]
        self._order = np.argsort(pairs, kind="stable").astype(np.int32)
        self._pairs = pairs[self._order]

    def forget_oldest(self) -> int:
        """Forget a text; returns its tokens."""
        tokens = self._ends[0] - self._first
        self._first = self._ends.popleft()
        return tokens

    def __len__(self) -> int:
        return len(self._ends)

    def places(self, end: Tokens, length: int, most: int) -> Places:
        """The newest ones where the two newest tokens of `end` stand one after the other."""
        last, before = int(end[0]), int(end[1])
        if self._pairs is None:
            ends = np.flatnonzero(self._buffer[1 : self._filled] == last) + 1
            ends = ends[self._buffer[ends - 1] == before]
        else:
            key = before << 32 | last
            found = np.searchsorted(self._pairs, [key, key + 1])
            ends = self._order[found[0] : found[1]].astype(np.intp) + 1
        return Places.at(self._buffer, ends[ends > self._first][-most:], len(end), length)


class SuffixPool:
    """Answers to requests that have ended: the newest ones, at most `texts` of them and `tokens` tokens.

    Args:
        texts: most answers.
        margin: tokens of the longest match, and of the longest draft.
        tokens: most tokens of all answers.
        segment: tokens that are searched one by one before they are sorted.
    """

    def __init__(self, texts: int, margin: int, tokens: int = _POOL_TOKENS, segment: int = _SEGMENT) -> None:
        self._most_texts, self._most_tokens, self._margin, self._segment = texts, tokens, margin, segment
        self._segments: deque[_Segment] = deque()
        self._texts = self._tokens = 0

    def add(self, text: Tokens) -> None:
        """Take an answer in, and forget the oldest ones that are too many."""
        if not len(text):
            return
        if not self._segments or not self._segments[-1].has_room(len(text)):
            if self._segments:
                self._segments[-1].close()
            self._segments.append(_Segment(max(self._segment, len(text) + 2), self._margin))
        self._segments[-1].add(text)
        self._texts += 1
        self._tokens += len(text) + 1
        while self._texts > self._most_texts or self._tokens > self._most_tokens:
            self._tokens -= self._segments[0].forget_oldest()
            self._texts -= 1
            if not len(self._segments[0]):
                self._segments.popleft()

    def close(self) -> None:
        """Sort what is there; nothing is added after it."""
        self._segments[-1].close()

    def draft(self, end: Tokens, length: int, own: int) -> tuple[list[int], list[float]]:
        """As `Places.draft`, of all texts."""
        left, found = _MOST_PLACES, []
        for segment in reversed(self._segments):
            found.append(segment.places(end, length, left))
            left -= len(found[-1].before)
            if not left:
                break
        if left == _MOST_PLACES:
            return [], []
        found.reverse()
        before, after = ([getattr(each, side) for each in found] for side in ("before", "after"))
        return Places(np.concatenate(before), np.concatenate(after)).draft(end, length, own)


@dataclass(slots=True)
class _State:
    """Of a request: its text, and how long its prompt was."""

    text: _Text
    prompt: int


class SuffixSpeculator(Speculator):
    """The methods are those of ``Speculator``.

    Args:
        draft_length: most tokens drafted a step, 1 or more.
        ngram: longest match; -1: any, of which 32 tokens are looked at.
        global_pool: whether answers to earlier requests are searched, too.
        global_pool_size: most answers in it, 1 or more; None: 1,000. In any case about a million tokens.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "suffix_automaton"
    ends_drafts = True

    def __init__(
        self,
        draft_length: int = 5,
        ngram: int = _ANY,
        global_pool: bool = False,
        global_pool_size: int | None = None,
    ) -> None:
        if draft_length < 1:
            raise ValueError(f"suffix_automaton: draft_length is {draft_length}; it must be 1 or more")
        if ngram != _ANY and ngram < 1:
            raise ValueError(
                f"suffix_automaton: ngram is {ngram}; it must be 1 or more, or -1 for any length"
            )
        if global_pool_size is not None and global_pool_size < 1:
            raise ValueError(
                f"suffix_automaton: global_pool_size is {global_pool_size}; it must be 1 or more"
            )
        self.max_draft_length = draft_length
        self._longest = _LONGEST if ngram == _ANY else ngram
        self._margin = max(self._longest, draft_length, 2)
        self._pool = SuffixPool(global_pool_size or _POOL_TEXTS, self._margin) if global_pool else None
        self._texts: SuffixPool | None = None
        self._states: Requests[_State] = Requests(self.name)

    def search(self, texts: Sequence[Tokens]) -> None:
        """Have texts searched from now on, for every request, beside what the others have."""
        tokens = sum(len(text) + 1 for text in texts)
        self._texts = SuffixPool(
            len(texts), self._margin, tokens, segment=max(_SEGMENT, tokens // _TEXT_SEGMENTS)
        )
        for text in texts:
            self._texts.add(text)
        self._texts.close()

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        text = _Text(self._margin)
        self._states.start(request_id, _State(text, len(prompt)))
        text.extend(prompt)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [
            self._draft(self._states[request_id], min(budget, self.max_draft_length))
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        self._states[request_id].text.extend(outcome.emitted)

    def finish(self, request_id: int) -> None:
        state = self._states.finish(request_id)
        if self._pool is not None:
            self._pool.add(state.text.tokens[state.prompt :])

    def _draft(self, state: _State, length: int) -> TokenTree:
        text = state.text
        if not length or len(text.tokens) < 2:
            return EMPTY
        end = text.end(self._longest)
        tokens, shares = text.places(self._longest, length).draft(end, length, len(text.tokens))
        for pool, own in ((self._pool, len(text.tokens) - state.prompt), (self._texts, 0)):
            others = pool.draft(end, length, own) if pool is not None and self._longest > 1 else ([], [])
            if sum(others[1]) > sum(shares):
                tokens, shares = others
        return TokenTree.chain(tokens, scores=[math.log(share) for share in shares])
