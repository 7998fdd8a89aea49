"""The accept rule is exact: over every branch of chance, what comes out is distributed as the target."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.runner import BestLogits
from engine.sampling import Distribution, LogitsError, RequestRandom
from engine.verification import Verdict, verify_greedy, verify_sampling
from speculators.tree import EMPTY, ROOT, TokenTree
from tests.engine.branches import Branches, exact_distribution

VOCABULARY = 3
DEPTH = 2
CONTEXTS = [
    context for depth in range(DEPTH + 1) for context in itertools.product(range(VOCABULARY), repeat=depth)
]
SHAPES = [(), (ROOT,), (ROOT, 0), (ROOT, ROOT), (ROOT, ROOT, ROOT), (ROOT, ROOT, 0), (ROOT, 0, 0, ROOT, 3)]

Table = Mapping[tuple[int, ...], Distribution]


def distributions(least: int) -> st.SearchStrategy[Distribution]:
    """Distributions with zeros and ties; ``least`` 0 or 1 is the least weight of a token."""
    weights = st.lists(st.integers(least, 4), min_size=VOCABULARY, max_size=VOCABULARY).filter(any)
    return weights.map(lambda values: np.array(values, np.float64) / sum(values))


def tables(least: int) -> st.SearchStrategy[Table]:
    return st.fixed_dictionaries({context: distributions(least) for context in CONTEXTS})


def draw_tree(shape: tuple[int, ...], proposals: Table, branches: Branches, replace: bool) -> TokenTree:
    """Draw a tree of the given shape; children beyond the support of their proposal are left out."""
    tokens: list[int] = []
    parents: list[int] = []
    contexts: dict[int, tuple[int, ...]] = {ROOT: ()}
    renumbered = {ROOT: ROOT}
    left = {context: proposal.copy() for context, proposal in proposals.items()}
    for node, parent in enumerate(shape):
        if parent not in contexts or not left[contexts[parent]].any():
            continue
        context = contexts[parent]
        token = branches.choose(left[context])
        if not replace:
            left[context][token] = 0
        renumbered[node] = len(tokens)
        tokens.append(token)
        parents.append(renumbered[parent])
        contexts[node] = (*context, token)
    inner = {renumbered[node]: proposals[context].astype(np.float32) for node, context in contexts.items()}
    return TokenTree(tuple(tokens), tuple(parents), {parent: inner[parent] for parent in parents})


def rows_of(tree: TokenTree, target: Table) -> list[Distribution]:
    contexts: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        contexts.append((*contexts[parent + 1], token))
    return [target[context] for context in contexts]


def emitted(tree: TokenTree, verdict: Verdict) -> tuple[int, ...]:
    return (*[tree.tokens[node] for node in verdict.path], verdict.token)


def joint_of(target: Table, prefix: tuple[int, ...], length: int) -> dict[tuple[int, ...], float]:
    """Probability of each sequence of ``length`` that begins with ``prefix``, given the prefix."""
    sequences = {prefix: 1.0}
    for _ in range(length - len(prefix)):
        sequences = {
            (*sequence, token): probability * target[sequence][token]
            for sequence, probability in sequences.items()
            for token in range(VOCABULARY)
        }
    return sequences


def assert_exact(outcomes: Mapping[tuple[int, ...], float], target: Table) -> None:
    """Emitted tokens, continued by the target alone, are sequences of the target."""
    found: dict[tuple[int, ...], float] = dict.fromkeys(joint_of(target, (), DEPTH + 1), 0.0)
    for tokens, probability in outcomes.items():
        for sequence, rest in joint_of(target, tokens, DEPTH + 1).items():
            found[sequence] += probability * rest
    expected = joint_of(target, (), DEPTH + 1)
    # Proposals are float32; verification normalises them again, so rounding is all that is left.
    assert found == pytest.approx(expected, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), tables(least=0), tables(least=0), st.booleans())
def test_drawn_children_leave_the_target_distribution(
    shape: tuple[int, ...], target: Table, proposals: Table, replace: bool
) -> None:
    def run(branches: Branches) -> tuple[int, ...]:
        tree = draw_tree(shape, proposals, branches, replace)
        return emitted(tree, verify_sampling(tree, rows_of(tree, target), branches))

    assert_exact(exact_distribution(run), target)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SHAPES), st.data(), tables(least=0))
def test_any_deterministic_tree_leaves_the_target_distribution(
    shape: tuple[int, ...], data: st.DataObject, target: Table
) -> None:
    tokens = data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=len(shape), max_size=len(shape)))
    tree = TokenTree(tuple(tokens), shape)
    outcomes = exact_distribution(
        lambda branches: emitted(tree, verify_sampling(tree, rows_of(tree, target), branches))
    )
    assert_exact(outcomes, target)


@settings(max_examples=60, deadline=None)
@given(distributions(least=0), st.permutations(range(VOCABULARY)), st.integers(1, VOCABULARY))
def test_point_masses_are_accepted_with_their_probability(
    target: Distribution, order: list[int], width: int
) -> None:
    tree = TokenTree(tuple(order[:width]), (ROOT,) * width)
    rows = [target] * (width + 1)
    accepted = exact_distribution(lambda branches: verify_sampling(tree, rows, branches).path)
    for child, token in enumerate(tree.tokens):
        assert accepted.get((child,), 0.0) == pytest.approx(target[token])


@settings(max_examples=60, deadline=None)
@given(distributions(least=0), distributions(least=0))
def test_a_single_child_is_accepted_with_one_minus_total_variation(
    target: Distribution, proposal: Distribution
) -> None:
    def run(branches: Branches) -> bool:
        tree = TokenTree.chain([branches.choose(proposal)], [proposal.astype(np.float32)])
        return bool(verify_sampling(tree, [target, target], branches).path)

    overlap = float(np.minimum(target, proposal).sum())
    assert exact_distribution(run).get(True, 0.0) == pytest.approx(overlap, abs=1e-6)


def test_a_draft_from_the_target_itself_is_always_accepted() -> None:
    target = np.array([0.5, 0.3, 0.2])

    def run(branches: Branches) -> tuple[int, ...]:
        tokens = [branches.choose(target), branches.choose(target)]
        tree = TokenTree.chain(tokens, [target.astype(np.float32)] * 2)
        return verify_sampling(tree, [target] * 3, branches).path

    assert exact_distribution(run)[(0, 1)] == pytest.approx(1.0, abs=1e-6)


def test_residual_that_rounds_to_nothing_falls_back_to_the_target() -> None:
    class Unlucky(Branches):
        def accept(self, probability: float) -> bool:
            return False

    target = np.array([0.1, 0.9])
    tree = TokenTree.chain([1], [target])
    assert verify_sampling(tree, [target, target], Unlucky()).token in (0, 1)


def test_children_outside_their_proposal_are_passed_over() -> None:
    # The second 0 repeats a sibling that was rejected, and token 2 has no mass in q; token 1 is still tried.
    tree = TokenTree((0, 0, 1, 2), (ROOT,) * 4, {ROOT: np.array([0.5, 0.5, 0.0], np.float32)})
    target = np.array([0.1, 0.6, 0.3])
    paths = exact_distribution(lambda branches: verify_sampling(tree, [target] * 5, branches).path)
    assert paths == pytest.approx({(0,): 0.2, (2,): 0.8 * 0.25, (): 0.6})


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        (np.zeros(3, np.float32), "proposal of node -1 is not a distribution"),
        (np.array([0.5, np.nan, 0.5], np.float32), "proposal of node -1 is not a distribution"),
        (np.full(4, 0.25, np.float32), r"shape \(4,\); it must be \(3,\)"),
    ],
)
def test_proposals_that_are_no_distribution_are_refused(proposal: NDArray[np.float32], message: str) -> None:
    tree = TokenTree((1,), (ROOT,), {ROOT: proposal})
    with pytest.raises(ValueError, match=message):
        verify_sampling(tree, [np.full(3, 1 / 3)] * 2, RequestRandom(0))


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.lists(st.sampled_from(SHAPES), min_size=6, max_size=6), st.data())
def test_deterministic_drafts_do_not_change_the_output_of_a_seed(
    seed: int, shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    """With the same seed, plain and speculative sampling emit the same tokens, not just as likely ones."""

    def target(context: tuple[int, ...]) -> Distribution:
        probs: Distribution = np.random.default_rng(context).dirichlet(np.full(VOCABULARY, 0.7))
        return probs

    def generate(trees: list[TokenTree]) -> tuple[int, ...]:
        random = RequestRandom(seed)
        output: tuple[int, ...] = ()
        for tree in trees:
            contexts = [output]
            for token, parent in zip(tree.tokens, tree.parents, strict=True):
                contexts.append((*contexts[parent + 1], token))
            verdict = verify_sampling(tree, [target(context) for context in contexts], random)
            output = (*output, *emitted(tree, verdict))
        return output

    drafts = [
        TokenTree(tuple(data.draw(st.integers(0, VOCABULARY - 1)) for _ in shape), shape) for shape in shapes
    ]
    speculative = generate(drafts)
    assert speculative == generate([EMPTY] * len(speculative))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_greedy_emits_what_plain_greedy_decoding_would(draft: list[int], data: st.DataObject) -> None:
    wanted = [data.draw(st.integers(0, 3)) for _ in range(len(draft) + 1)]
    logits = np.zeros((len(draft) + 1, 4), np.float32)
    logits[np.arange(len(wanted)), wanted] = 1
    verdict = verify_greedy(TokenTree.chain(draft), logits, request_id=0)
    matching = next((i for i, token in enumerate(draft) if token != wanted[i]), len(draft))
    assert emitted(TokenTree.chain(draft), verdict) == tuple(wanted[: matching + 1])


def test_greedy_follows_the_branch_that_the_target_takes() -> None:
    tree = TokenTree((5, 2, 7, 3, 3), (ROOT, ROOT, 0, 1, 1))
    logits = np.zeros((6, 8), np.float32)
    logits[0, 2] = logits[2, 3] = logits[4, 6] = 1
    assert verify_greedy(tree, logits, request_id=0) == Verdict((1, 3), 6)


def test_greedy_takes_the_lowest_id_of_equal_logits() -> None:
    assert verify_greedy(EMPTY, np.array([[1, 3, 3]], np.float32), request_id=0) == Verdict((), 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [(np.nan, "NaN"), (np.inf, r"\+infinity"), (-np.inf, "every token is banned")],
)
def test_logits_without_a_maximum_name_the_request_and_the_row(bad: float, message: str) -> None:
    logits = np.zeros((2, 4), np.float32)
    logits[0, 1] = 5
    logits[1] = bad
    with pytest.raises(LogitsError, match=f"request 17, row 1 of the step: .*{message}"):
        verify_greedy(TokenTree.chain([1]), logits, request_id=17)
    assert verify_greedy(TokenTree.chain([3]), logits, request_id=17) == Verdict((), 1)
    best = BestLogits.of(logits)
    with pytest.raises(LogitsError, match=f"request 17, row 1 of the step: .* is {bad}"):
        verify_greedy(TokenTree.chain([1]), best, request_id=17)
    assert verify_greedy(TokenTree.chain([3]), best, request_id=17) == Verdict((), 1)
