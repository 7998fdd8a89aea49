"""What the engine asks of every speculator, and in which order.

A speculator says what it needs (`Requirements`), then the engine is made for all speculators of a deployment, then they
are bound to it. It serves many requests at once and keeps state for each of them between ``start`` and ``finish``. In
the steps in between it proposes a token tree for the requests that it is asked for, and is told what became of every
step of each request, whoever drafted. The engine verifies every proposal exactly, so a speculator can change how fast
the output comes, never what it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.target_access import TargetAccess
from speculators.tree import EMPTY, TokenTree


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a speculator needs of the engine; known before anything is opened.

    Attributes:
        hidden_layers: hidden states of the target that ``observe`` is given: i is what goes into layer i, -1 what comes
            out of the final norm.
        max_branches: most nodes of a tree that are not the first child of their parent; 0 if it proposes chains.
        max_probes: most probe nodes of a tree (see `speculators.tree`), beside the nodes that it drafts.
        target_tokens: how many of the target's likeliest tokens ``observe`` is given at every node.
        block_weights: whether ``observe`` is told what attention the blocks of a request's cache get.
        drafts_with_target: whether it is to be bound to the target.
        scratch_rows: cache rows behind the longest context of a request that it, or its probes, write to.
        rows_ahead: of a drafter that makes cache rows of its own from hidden states, how many tokens beyond a row
            decide what is in it. Such rows cannot be made again without running the target, so its requests take over
            only what has both kinds of rows. None: it has no rows, or makes them from the tokens alone.
    """

    hidden_layers: tuple[int, ...] = ()
    max_branches: int = 0
    max_probes: int = 0
    target_tokens: int = 0
    block_weights: bool = False
    drafts_with_target: bool = False
    scratch_rows: int = 0
    rows_ahead: int | None = None


class Speculator(ABC):
    """Proposes token trees for running requests.

    Attributes:
        name: the method, as the deployment spec names it.
        max_draft_length: most nodes that it drafts for one request in one step; 0 means that it never proposes.
        requirements: what it needs.
        ends_drafts: whether it ends a draft where it is unsure; if not, policies shorten drafts by what was accepted
            lately. One that does is told not to by setting it, between two calls: so whole drafts are measured.
        in_turns: whether it takes turns with the drafters that it stands beside, each going on (`extend`) where the
            others end; if not, it is used in place of theirs.
    """

    name: str
    max_draft_length: int
    requirements: Requirements = Requirements()
    ends_drafts: bool = False
    in_turns: bool = False

    def bind(self, target: TargetAccess) -> None:  # noqa: B027
        """Take the target that it drafts for, once, if it asked for it."""

    @abstractmethod
    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        """Begin a request, before any of its prompt is read.

        Args:
            request_id: names it from now on.
            prompt: all tokens that are known.
            rows: for a drafter with a KV cache, which counts in it what it has computed until the request is finished.

        Raises:
            ValueError: the request is already running.
        """

    def catch_up(self, request_ids: Sequence[int], limit: int) -> list[int]:
        """Read what was observed and must be read before drafting: at most `limit` tokens in this call.

        It is called in every step for the requests that it drafts for, or may draft for any time. One that is not asked
        for a while reads nothing meanwhile, and has the more to read when it is asked again.

        Returns:
            For each request how many tokens are left to read; it is not asked to draft before there are none.
        """
        return [0] * len(request_ids)

    @abstractmethod
    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        """One tree for each request, of at most ``budgets[i]`` nodes (0 is allowed) and ``max_draft_length``.

        Raises:
            KeyError: a request is not running.
        """

    def extend(
        self, request_ids: Sequence[int], drafts: Sequence[TokenTree], budgets: Sequence[int]
    ) -> list[TokenTree]:
        """What comes below the last nodes of chains that others may have drafted: where drafters take turns.

        One that can be followed by others at any place gives a single token at a time. Asked again in the same step,
        it finds what it was given before, and maybe more behind it. By default a speculator begins drafts, as it
        proposes them, and does not go on with any.

        Args:
            request_ids: requests.
            drafts: a chain for each, empty where nothing has been drafted yet.
            budgets: most nodes to add, 1 or more.

        Returns:
            Chains, whose scores are those of their own nodes alone; empty where it does not go on.

        Raises:
            KeyError: a request is not running.
        """
        begun = [place for place, draft in enumerate(drafts) if not len(draft)]
        found = self.propose([request_ids[place] for place in begun], [budgets[place] for place in begun])
        proposed = dict(zip(begun, found, strict=True))
        return [proposed.get(place, EMPTY) for place in range(len(drafts))]

    @abstractmethod
    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        """Take in a step of a request, the last one included; cheap, since it is told of steps of others' drafts too.

        All emitted tokens are told, in order, the first one after the prompt included, and all parts of a prompt that
        the target read.

        Raises:
            KeyError: the request is not running.
        """

    @abstractmethod
    def finish(self, request_id: int) -> None:
        """Forget the request; also called when it is cancelled.

        Raises:
            KeyError: the request is not running.
        """
