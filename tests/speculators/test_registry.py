"""Every registered speculator keeps the contract of `Speculator`; wrong names get the right ones in reply."""

import pytest

from speculators.base import Speculator
from speculators.outcome import StepOutcome
from speculators.registry import METHODS, create, settings_of
from speculators.tree import EMPTY

PROMPT = [1, 2, 3, 1, 2, 3, 1, 2]


@pytest.fixture(params=METHODS)
def speculator(request: pytest.FixtureRequest) -> Speculator:
    return create(request.param)


def test_one_tree_per_request_within_its_budget(speculator: Speculator) -> None:
    for request_id in (3, 5, 8):
        speculator.start(request_id, PROMPT)
    trees = speculator.propose([8, 3, 5], [0, 2, 100])
    assert [tree.drafted <= budget for tree, budget in zip(trees, [0, 2, 100], strict=True)] == [True] * 3
    assert max(tree.drafted for tree in trees) <= speculator.max_draft_length
    assert trees[0] == EMPTY


def test_requests_start_once_and_end_for_good(speculator: Speculator) -> None:
    speculator.start(1, PROMPT)
    with pytest.raises(ValueError, match="request 1 is already running"):
        speculator.start(1, PROMPT)
    speculator.observe(1, StepOutcome([3]))
    speculator.finish(1)
    for use in (
        lambda: speculator.propose([1], [2]),
        lambda: speculator.observe(1, StepOutcome([3])),
        lambda: speculator.finish(1),
    ):
        with pytest.raises(KeyError, match="request 1 is not running"):
            use()
    speculator.start(1, PROMPT)


def test_settings_reach_the_method() -> None:
    assert create("anpd", draft_length=3).max_draft_length == 3
    assert settings_of("anpd") == ("ngram", "draft_length")
    assert settings_of("none") == ()


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("anpdd", {}, "did you mean 'anpd'"),
        ("medusa", {}, "Known: anpd, lookahead, none, prompt_lookup"),
        ("anpd", {"n_gram": 5}, "no setting 'n_gram'; it has ngram, draft_length"),
        ("none", {"ngram": 5}, "no setting 'ngram'; it has none"),
    ],
)
def test_wrong_names_are_refused(method: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(method, **settings)
