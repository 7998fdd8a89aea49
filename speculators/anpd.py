"""ANPD: adaptive n-gram parallel decoding (Ou et al., arXiv 2404.08698, sections 3.1 to 3.3).

The draft comes from counts of the n-grams in the request's own prompt and output, at several levels n =
N..2. To draft a token, take the last N - 1 tokens and look up what followed them most often; on a miss
drop the oldest token of the context and look again, down to one token of context. Drafted tokens are fed
back until K are drafted or every level misses. The counts start with the prompt and grow with emitted
tokens only, so they follow the live text.

Where this differs from the code published with the paper, on purpose: a miss at every level drafts
nothing (there it drafts token 1), and each n-gram of the prompt is counted once (there twice, with
n-grams that join its end to its beginning). Ties go to the n-gram that was inserted last.

Example:
    >>> speculator = AnpdSpeculator(ngram=3, draft_length=4)
    >>> speculator.start(0, [5, 6, 7, 8, 5, 6])
    >>> speculator.propose([0], [4])[0].tokens
    (7, 8, 5, 6)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speculators.base import Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Texts
from speculators.tree import TokenTree

_TOKEN_BITS = 32
_NONE = -1
# Observations of a context that the shorter one counts for. On 47 answers of SmolLM2-135M, 2 tells 0.55, 0.75 and 0.95
# where 0.5, 0.7 and 0.98 come true; 1 tells more than is true, most of all of what was seen once.
_BELIEF = 2.0


class NgramTable:
    """Counts of every n-gram of a growing text, n = 1..N, and the likeliest successor of each one.

    A trie over the text: a node is an n-gram, its children are the (n + 1)-grams that begin with it. The
    nodes of the text's last 1..N - 1 tokens are kept at hand, so that adding a token and drafting one
    each cost about N dictionary look-ups, however long the text is. Memory: at most N nodes a token.
    """

    def __init__(self, ngram: int) -> None:
        self._levels = ngram
        self._child: dict[
            int, int
        ] = {}  # (node, token) packed into one integer -> node; node 0 is the empty n-gram
        self._token = [_NONE]
        self._count = [0]
        self._best = [_NONE]  # child seen most often, the latest one on a tie
        self._suffixes = [
            0
        ]  # node of the text's last m tokens, m = 0..N - 1 (fewer while the text is shorter)

    def __len__(self) -> int:
        """Number of distinct n-grams stored, over all levels."""
        return len(self._count) - 1

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text and count the n-grams that end in each of them."""
        child, count, best, token_of = self._child, self._count, self._best, self._token
        suffixes = self._suffixes
        for token in tokens:
            extended = [0]
            for parent in suffixes:
                key = parent << _TOKEN_BITS | token
                node = child.get(key, _NONE)
                if node < 0:
                    node = child[key] = len(count)
                    count.append(1)
                    token_of.append(token)
                    best.append(_NONE)
                else:
                    count[node] += 1
                leader = best[parent]
                if leader < 0 or count[node] >= count[leader]:
                    best[parent] = node
                extended.append(node)
            suffixes = extended[: self._levels]
        self._suffixes = suffixes

    def draft(self, length: int, shortest: int = 1, after: Sequence[int] = ()) -> Iterator[int]:
        """Continue the text by up to ``length`` tokens, fewer if every level misses; does not change it.

        Contexts of fewer than ``shortest`` tokens are not looked up. With ``after`` the text and these tokens are
        continued.
        """
        best, token_of = self._best, self._token
        suffixes = self._contexts(after)
        for _ in range(length):
            # The longest context comes last; the empty one (level n = 1) is not a level of the method.
            leader = next(
                (best[node] for node in suffixes[: shortest - 1 : -1] if node >= 0 and best[node] >= 0), _NONE
            )
            if leader < 0:
                return
            token = token_of[leader]
            yield token
            suffixes = self._extended(suffixes, token)

    def likely(
        self, length: int, shortest: int = 1, after: Sequence[int] = ()
    ) -> Iterator[tuple[int, float]]:
        """As `draft`, each token with how likely it comes next if those before it do.

        What followed a context is believed as far as there is enough of it, else what followed the next shorter one
        (MacKay and Peto, "A hierarchical Dirichlet language model", 1995): of a context seen n times, c of them before
        this token, it is (c + a p) / (n + a) with p that of the context without its oldest token.
        """
        suffixes = self._contexts(after)
        for token in self.draft(length, shortest, after):
            yield token, self._chance(suffixes, token)
            suffixes = self._extended(suffixes, token)

    def _chance(self, suffixes: Sequence[int], token: int) -> float:
        chance, count, ends = 0.0, self._count, self._suffixes
        for size, node in enumerate(suffixes):
            if node < 0:
                break
            # What stands at the text's end has no successor yet.
            followed = count[node] - (size < len(ends) and ends[size] == node)
            if size and followed:
                same = self._child.get(node << _TOKEN_BITS | token, _NONE)
                chance = ((count[same] if same >= 0 else 0) + _BELIEF * chance) / (followed + _BELIEF)
        return chance

    def _contexts(self, after: Sequence[int]) -> Sequence[int]:
        """Nodes of the ends of the text and these tokens."""
        suffixes: Sequence[int] = self._suffixes
        for token in after:
            suffixes = self._extended(suffixes, token)
        return suffixes

    def _extended(self, suffixes: Sequence[int], token: int) -> list[int]:
        """Contexts of one token more, the empty one first; those that the text does not have are _NONE."""
        child = self._child
        found = [child.get(node << _TOKEN_BITS | token, _NONE) if node >= 0 else _NONE for node in suffixes]
        return [0, *found[: self._levels - 1]]


class AnpdSpeculator(Speculator):
    """Drafts chains from the n-grams of each request's own text; the methods are those of ``Speculator``.

    Args:
        ngram: N, the longest n-gram, 2 or more (paper, section 4: 5).
        draft_length: K, most tokens drafted a step, 1 or more (paper, section 4: 7).

    Raises:
        ValueError: an argument is out of range.
    """

    name = "anpd"

    def __init__(self, ngram: int = 5, draft_length: int = 7) -> None:
        if ngram < 2:
            raise ValueError(
                f"anpd: ngram is {ngram}; it must be 2 or more, one token of context and the next one"
            )
        if draft_length < 1:
            raise ValueError(
                f"anpd: draft_length is {draft_length}; it must be 1 or more (to draft nothing: none)"
            )
        self.max_draft_length = draft_length
        self._ngram = ngram
        self._tables: Texts[NgramTable] = Texts(self.name)

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._tables.start(request_id, NgramTable(self._ngram), prompt)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [
            TokenTree.chain(tuple(self._tables[request_id].draft(min(budget, self.max_draft_length))))
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        self._tables.extend(request_id, outcome.emitted)

    def finish(self, request_id: int) -> None:
        self._tables.finish(request_id)
