"""What lookups keep of texts is brought up to date when it is asked for, and not before."""

from collections.abc import Sequence

import pytest

from speculators.requests import Texts


class Counted(list[int]):
    """A text that knows how often it was appended to."""

    times = 0

    def extend(self, tokens: Sequence[int]) -> None:  # type: ignore[override]
        super().extend(tokens)
        self.times += 1


def test_a_text_is_taken_in_when_it_is_asked_for() -> None:
    texts, asked, other = Texts[Counted]("x"), Counted(), Counted()
    texts.start(0, asked, [1, 2])
    texts.start(1, other, [7])
    texts.extend(0, (3,))
    assert texts[0] == [1, 2, 3]
    texts.extend(0, (4, 5))
    texts.extend(1, (8,))
    assert texts[0] == [1, 2, 3, 4, 5] and texts[0].times == 3
    assert other.times == 0


def test_a_request_that_is_not_running_is_refused_at_once() -> None:
    texts = Texts[Counted]("x")
    with pytest.raises(KeyError, match="x: request 3 is not running"):
        texts.extend(3, (1,))
    texts.start(3, Counted(), ())
    texts.finish(3)
    with pytest.raises(KeyError, match="x: request 3 is not running"):
        texts[3]
