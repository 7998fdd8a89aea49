"""A lookup that drafts only where it is sure."""

import pytest

from speculators.lookup import SureLookup
from speculators.outcome import StepOutcome

REPEATED = [4, 9, 9, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]


@pytest.mark.parametrize(("threshold", "tokens"), [(3, (5, 6, 7, 1)), (4, (5, 6, 7, 1)), (5, ())])
def test_the_threshold_is_the_shortest_match(threshold: int, tokens: tuple[int, ...]) -> None:
    lookup = SureLookup(threshold, 4)
    lookup.start(0, REPEATED)
    assert lookup.propose([0], [4])[0].tokens == tokens


def test_it_follows_what_is_emitted() -> None:
    lookup = SureLookup(2, 4)
    lookup.start(0, [1, 2, 3])
    lookup.observe(0, StepOutcome([1, 2]))
    assert lookup.propose([0], [1])[0].tokens == (3,)
    lookup.observe(0, StepOutcome([9, 1]))
    assert lookup.propose([0], [1])[0].tokens == (), "nothing follows (9, 1) yet"


def test_a_request_ends() -> None:
    lookup = SureLookup(2, 4)
    lookup.start(0, [1, 2])
    lookup.finish(0)
    with pytest.raises(KeyError, match="request 0 is not running"):
        lookup.propose([0], [1])
