"""What the engine asks of every speculator.

A speculator serves many requests at once and keeps state for each of them between ``start`` and
``finish``. In each engine step it proposes a token tree for every running request, and afterwards it is
told which tokens were emitted. The engine verifies every proposal exactly, so a speculator can change how
fast the output comes, never what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from speculators.graphs import DrafterRows
from speculators.tree import TokenTree


class Speculator(Protocol):
    """Proposes token trees for the running requests.

    Attributes:
        name: the method, as the deployment spec names it.
        max_draft_length: most nodes it proposes for one request in one step; 0 means that it never proposes.
        max_branches: most nodes of a tree that are not the first child of their parent; 0 if it proposes chains.
        needs_hidden: hidden states of the target that ``observe`` receives: i is what goes into layer i, -1 what
            comes out of the final norm; empty if it needs none.
        ends_drafts: whether it ends a draft where it is unsure; if not, the engine shortens drafts by what was
            accepted lately.
        rows_ahead: of a drafter that makes cache rows of its own from hidden states, how many tokens beyond a row
            decide what is in it. Such rows cannot be made again without running the target, so its requests take over
            only what has both kinds of rows. None: it has no rows, or makes them from the tokens alone.
    """

    name: str
    max_draft_length: int
    max_branches: int
    needs_hidden: tuple[int, ...]
    ends_drafts: bool
    rows_ahead: int | None

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        """Begin a request, before any of its prompt is read.

        Args:
            request_id: names it from now on.
            prompt: all tokens that are known.
            rows: for a drafter with a KV cache, which counts in it what it has computed until the request is finished.

        Raises:
            ValueError: the request is already running.
        """

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        """One tree for each request, of at most ``budgets[i]`` nodes (0 is allowed) and ``max_draft_length``.

        Raises:
            KeyError: a request is not running.
        """

    def observe(
        self, request_id: int, accepted: Sequence[int], hidden: NDArray[np.float32] | None = None
    ) -> None:
        """Take in tokens that were emitted: all of them, in order, the first one after the prompt included.

        Args:
            request_id: the request that they belong to.
            accepted: the emitted token ids; none where a part of the prompt was read, which is told only if
                ``needs_hidden`` is not empty.
            hidden: float ``[rows, len(needs_hidden), H]``: hidden states of the tokens that the target has
                read since the last call, and kept, valid during the call. Token i of ``accepted`` was drawn from row
                ``rows - len(accepted) + i``. The first row is that of the first token after what the target had in
                its cache. None if ``needs_hidden`` is empty.

        Raises:
            KeyError: the request is not running.
        """

    def finish(self, request_id: int) -> None:
        """Forget the request; also called when it is cancelled.

        Raises:
            KeyError: the request is not running.
        """
