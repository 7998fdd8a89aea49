"""What other draft lengths would have made of the drafts that were recorded at full length.

Drafts hold their likeliest nodes first, so a shorter one would have been the first nodes of the longer. Where it would
have ended within what was accepted, the target's own token is the next one of the accepted path, and the draft after it
goes on where the recorded one did: what was accepted is text that the drafter foresaw, in however many steps. So a
replay emits exactly the tokens of the record, in more steps. The lengths that follow acceptance are those of the engine
(`speculators.draft_length`).

What is not known is what a new draft would hold beyond the end of the recorded one; it counts as if there were nothing,
so shorter drafts do a little better than their replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.profile.records import RequestRecord, StepRecord
from speculators.draft_length import DraftLength

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Behaviour:
    """Decoding steps of each request, after the one that ends its prompt.

    Attributes:
        tokens: ``[requests]``, emitted by them.
        steps: ``[requests]``.
        asked: ``[requests]``, nodes that drafts might have had, over all steps.
        nodes: ``[requests, most + 1]``, how many steps had a draft of 0, 1, ... nodes.
        probes: tokens that a step runs beside, which are never accepted.
    """

    tokens: Floats
    steps: Floats
    asked: Floats
    nodes: Floats
    probes: int = 0

    @property
    def most(self) -> int:
        """Nodes of the longest draft there may be."""
        return self.nodes.shape[1] - 1


def longest_draft(records: Sequence[RequestRecord]) -> int:
    """Nodes of the longest recorded draft; 0: nothing was ever drafted."""
    return max((draft.nodes for record in records for draft in record.drafts), default=0)


def replay(records: Sequence[RequestRecord], length: int, *, adaptive: bool, probes: int = 0) -> Behaviour:
    """Every request with drafts of at most `length` nodes, 0 for plain decoding, and `probes` probes beside them."""
    tokens, steps, asked = (np.zeros(len(records)) for _ in range(3))
    nodes = np.zeros((len(records), length + 1))
    for row, record in enumerate(records):
        lengths = DraftLength(length, adaptive=adaptive)
        for draft in (*record.drafts, *_last(record)):
            for budget, drafted, emitted in _steps(draft, lengths):
                asked[row] += budget
                nodes[row, drafted] += 1
                tokens[row] += emitted
        # In these nothing was drafted.
        others = max(0, record.steps - 1 - len(record.drafts) - len(_last(record)))
        nodes[row, 0] += others
        tokens[row] += others
        asked[row] += others * lengths.current
        steps[row] = nodes[row].sum()
    kept = steps > 0
    return Behaviour(tokens[kept], steps[kept], asked[kept], nodes[kept], probes)


def _last(record: RequestRecord) -> list[StepRecord]:
    """The draft of the last step, which is not among the records: what was accepted of it is what is missing."""
    told = sum(len(draft.path) + 1 for draft in record.drafts)
    accepted = record.tokens - told - (record.steps - len(record.drafts))
    if accepted <= 0:
        return []
    nodes = max([accepted, *(draft.nodes for draft in record.drafts)])
    return [StepRecord(nodes, nodes, (), (), tuple(range(accepted)))]


def _steps(draft: StepRecord, lengths: DraftLength) -> Iterator[tuple[int, int, int]]:
    """Most nodes, nodes and emitted tokens of each step that takes the place of a recorded one."""
    path, first = draft.path, 0
    while True:
        budget = lengths.current
        drafted = max(0, min(budget, draft.nodes - first))
        accepted = sum(node - first < drafted for node in path)
        if drafted:
            levels = -(-drafted * draft.depth // draft.nodes)
            lengths.update(drafted, max(levels, accepted), accepted)
        yield budget, drafted, accepted + 1
        if accepted == len(path):
            return
        first, path = path[accepted] + 1, path[accepted + 1 :]
