"""The rule that everything rests on: which draft tokens stay, and which token comes after them.

The target has been run on the root and all draft nodes of a tree; row i + 1 is its answer at node i, row
0 at the root. Verification walks down from the root, one emitted token at a time, and emits exactly what
the target alone would have: greedy decoding the same tokens, sampling the same distribution. In both, a
draft only decides how many tokens a step emits.

Greedy. The target's token at a node is its argmax. If a child carries it, go there; if not, emit it and stop.

Sampling. Let p be the target's distribution at a node.

 * Children chosen without chance, or none at all: draw y ~ p; if a child carries y, go there; if not,
   emit y and stop. y is the target's own sample. (It equals trying the distinct children x in turn, each
   accepted with p(x), and otherwise p(x) = 0 and p renormalised: either way child x is entered with
   probability p(x).) Draws happen once per emitted token and do not depend on the draft, so with such
   drafts the output for a seed is that of plain decoding, token for token, whatever was drafted.

 * Children drawn from q, one after the other without replacement (Leviathan 2211.17192 and Chen
   2302.01318 for one child; Sequoia 2402.12374, algorithm 2, for several). Keep a residual r, first p,
   and the proposal d, first q:

       child x:  accept with probability min(1, r(x) / d(x))
                 otherwise  r <- norm(max(r - d, 0)),  d(x) <- 0,  d <- norm(d)
       no child accepted:  emit y ~ r and stop

   Exact, since one trial leaves the distribution of what comes out as it was, namely r:

       P(x comes out) = min(d, r)(x) + (1 - sum min(d, r)) * norm(max(r - d, 0))(x)
                      = min(d, r)(x) + max(r - d, 0)(x)  =  r(x),    as 1 - sum min(d, r) = sum max(r - d, 0)

   and by induction from the last child to the first, the whole comes out as p. A child with d(x) = 0 cannot
   have been drawn from d (it repeats a rejected sibling, say) and is passed over, which leaves r as it is.
   With drawn children the tokens of a seed, though not their distribution, depend on the trees proposed.

No child left and the leaf reached are the same case: emit y ~ p there, the bonus token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.runner import BestLogits
from engine.sampling import Distribution, Draws, LogitsError, describe_bad_logits
from speculators.tree import ROOT, TokenTree


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one step: the tokens of ``path`` are emitted, then ``token``.

    Attributes:
        path: accepted nodes, from the root's child downwards; empty if none was accepted.
        token: the target's own token after them (correction or bonus).
    """

    path: tuple[int, ...]
    token: int


class Rows(Protocol):
    """The target's distribution ``[V]`` at each row of a step: an array ``[n + 1, V]`` or made on demand."""

    def __getitem__(self, row: int, /) -> Distribution: ...


def verify_greedy(tree: TokenTree, logits: NDArray[np.float32] | BestLogits, request_id: int) -> Verdict:
    """Follow the target's argmax down the tree (the lowest id if several logits are greatest).

    Args:
        tree: n draft nodes.
        logits: the target's logits, float ``[n + 1, V]``, row 0 at the root; or the greatest of each row.
        request_id: named in errors.

    Raises:
        LogitsError: logits on the path have no finite maximum.
    """
    path: list[int] = []
    node = ROOT
    while True:
        token, wrong = _greatest(logits, node + 1)
        if wrong:
            raise LogitsError(f"request {request_id}, row {node + 1} of the step: {wrong}")
        child = _child_with(tree, node, token)
        if child is None:
            return Verdict(tuple(path), token)
        path.append(child)
        node = child


def _greatest(logits: NDArray[np.float32] | BestLogits, row: int) -> tuple[int, str]:
    """The token of a row's greatest logit, and what is wrong with that: NaN and +infinity win the argmax."""
    if isinstance(logits, BestLogits):
        value = logits.values[row]
        wrong = "" if np.isfinite(value) else f"the greatest logit of the target is {value}"
        return int(logits.tokens[row]), wrong
    token = int(logits[row].argmax())
    return token, "" if np.isfinite(logits[row, token]) else describe_bad_logits(logits[row])


def verify_sampling(tree: TokenTree, probs: Rows, random: Draws) -> Verdict:
    """Walk down the tree so that what is emitted is distributed as the target's own samples.

    Args:
        tree: n draft nodes.
        probs: the target's distributions after temperature, top-k and top-p, float64 ``[n + 1, V]``, row
            0 at the root; only rows on the path are read, once each.
        random: the request's random numbers; new ones are taken for every decision.

    Raises:
        ValueError: a proposal on the path is not a distribution over the target's vocabulary.
    """
    path: list[int] = []
    node = ROOT
    while True:
        target = probs[node + 1]
        proposal = tree.proposals.get(node) if tree.proposals else None
        if proposal is None:
            token = random.choose(target)
            child = _child_with(tree, node, token)
        else:
            child, residual = _try_children(tree, node, target, proposal, random)
            token = random.choose(residual) if child is None else tree.tokens[child]
        if child is None:
            return Verdict(tuple(path), token)
        path.append(child)
        node = child


def _try_children(
    tree: TokenTree, node: int, residual: Distribution, proposal: NDArray[np.float32], random: Draws
) -> tuple[int | None, Distribution]:
    """Try the children of ``node``, drawn from ``proposal``; the accepted one or None, and the residual."""
    drawn_from = _normalised(proposal, node, len(residual))
    for child in tree.children(node):
        token = tree.tokens[child]
        if drawn_from[token] == 0:
            continue
        if random.accept(residual[token] / drawn_from[token]):
            return child, residual
        rest = np.maximum(residual - drawn_from, 0)
        mass = rest.sum()
        # Nothing is left only if r = d up to rounding; such a rejection is itself rounding, and r stands.
        residual = rest / mass if mass > 0 else residual
        drawn_from[token] = 0
        drawn_from /= drawn_from.sum() or 1.0
    return None, residual


def _child_with(tree: TokenTree, node: int, token: int) -> int | None:
    """First child of ``node`` that carries ``token``."""
    return next((child for child in tree.children(node) if tree.tokens[child] == token), None)


def _normalised(proposal: NDArray[np.float32], node: int, vocabulary: int) -> Distribution:
    """The proposal in float64 (its float32 sum is off by rounding)."""
    if proposal.shape != (vocabulary,):
        raise ValueError(
            f"proposal of node {node}: shape {proposal.shape}; it must be ({vocabulary},), as the target's"
        )
    mass = float(proposal.sum(dtype=np.float64))
    if not 0 < mass < np.inf:
        raise ValueError(f"proposal of node {node} is not a distribution: it sums to {mass}")
    exact: Distribution = np.divide(proposal, mass, dtype=np.float64)
    return exact
