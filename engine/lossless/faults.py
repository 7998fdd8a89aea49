"""Verifiers that are wrong on purpose: a test that does not reject them proves nothing.

Each fault is an easy one to make. The rule is written out here in its textbook form (point masses tried
child by child) with one line wrong; the engine's own code has no switch for being wrong.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.sampling import Distribution, RequestRandom
from engine.verification import Rows, Verdict
from speculators.tree import ROOT, TokenTree

Verifier = Callable[[TokenTree, Rows, RequestRandom], Verdict]


class Fault(enum.Enum):
    """What is wrong with a verifier."""

    NOT_SUBTRACTED = "after a rejection the proposal is not taken out of the residual"
    NOT_RENORMALISED = "the residual is not renormalised before the next sibling"
    NOT_REMOVED = "the rejected sibling stays in the proposal"
    BONUS_FROM_DRAFT = "the bonus token is drawn from the draft's distribution"
    REUSED_NUMBERS = "each step takes the same uniform numbers again"


def faulty_verifier(fault: Fault) -> Verifier:
    """A verifier for one run (it has the run's memory) with one fault."""
    uniforms: list[float] = []

    def verify(tree: TokenTree, probs: Rows, random: RequestRandom) -> Verdict:
        path: list[int] = []
        node, tried = ROOT, 0
        while True:
            residual = probs[node + 1]
            proposal = _proposal(tree, node)
            for child in tree.children(node):
                token = tree.tokens[child]
                drawn_from = _point_mass(token, len(residual)) if proposal is None else proposal
                accept = (
                    _repeatable(uniforms, tried, random) if fault is Fault.REUSED_NUMBERS else random.accept
                )
                tried += 1
                if accept(residual[token] / drawn_from[token]):
                    break
                residual = _residual(residual, drawn_from, fault)
                if proposal is not None and fault is not Fault.NOT_REMOVED:
                    proposal[token] = 0
                    proposal /= proposal.sum() or 1.0
            else:
                above = _proposal(tree, tree.parents[node]) if path else None
                if fault is Fault.BONUS_FROM_DRAFT and above is not None and not tree.children(node):
                    residual = above
                return Verdict(tuple(path), random.choose(residual))
            path.append(child)
            node = child

    return verify


def _proposal(tree: TokenTree, node: int) -> Distribution | None:
    if tree.proposals is None or node not in tree.proposals:
        return None
    return tree.proposals[node].astype(np.float64)


def _point_mass(token: int, vocabulary: int) -> Distribution:
    mass = np.zeros(vocabulary)
    mass[token] = 1
    return mass


def _repeatable(uniforms: list[float], index: int, random: RequestRandom) -> Callable[[float], bool]:
    """An accept rule whose n-th decision in a step takes the run's n-th number, in every step the same."""
    while len(uniforms) <= index:
        uniforms.append(random.draft.random())
    return lambda probability: uniforms[index] < probability


def _residual(residual: Distribution, drawn_from: NDArray[np.float64], fault: Fault) -> Distribution:
    if fault is Fault.NOT_SUBTRACTED:
        return residual
    rest = np.maximum(residual - drawn_from, 0)
    mass = rest.sum()
    if mass == 0:
        return residual
    return rest if fault is Fault.NOT_RENORMALISED else rest / mass
