"""Acceptance length from hits: counted as a request would run."""

import pytest

torch = pytest.importorskip("torch")

from speculators.training.acceptance import Acceptance  # noqa: E402

pytestmark = pytest.mark.torch


def counted(depth: int, right: list[int], start: int = 2, **settings: int) -> Acceptance:
    """A chain that, with the newest emitted token at s, drafts right[s - start] tokens right and then a wrong one."""
    end = start + len(right)
    hits = torch.zeros(depth, end, dtype=torch.bool)
    for offset, count in enumerate(right):
        for level in range(count):
            if start - 1 + offset + level + 1 < end:
                hits[level, start - 1 + offset + level + 1] = True
    acceptance = Acceptance(depth, **settings)
    acceptance.add(hits, start, end)
    return acceptance


def test_nothing_right_is_one_token_a_step() -> None:
    found = counted(3, [0] * 9)
    assert (found.tokens, found.steps, found.length) == (9, 9, 1.0)


def test_everything_right_fills_every_chain() -> None:
    # 9 tokens: 1 from the prompt's step, then 4 and 4.
    found = counted(3, [3] * 9)
    assert (found.tokens, found.steps) == (9, 3)
    assert found.drafted == found.accepted == [2, 2, 2]


def test_a_step_begins_where_the_last_one_ended() -> None:
    # Newest token 0: two accepted and one more, so the next step begins at 3; there nothing is right, then at 4 one is.
    found = counted(3, [2, 3, 3, 0, 1, 3, 0, 0])
    assert found.steps == 1 + 4  # 1..3, 4, 5 and 6, 7
    assert found.tokens == 8
    assert found.accepted == [2, 1, 0]


def test_only_the_first_tokens_count() -> None:
    assert counted(3, [3] * 50, max_tokens=9).steps == 3


def test_an_empty_answer_takes_no_step_and_of_nothing_acceptance_is_undefined() -> None:
    empty = counted(3, [])
    assert (empty.tokens, empty.steps, empty.length, empty.by_position) == (0, 0, None, [None] * 3)
    whole = counted(3, [3] * 9)
    whole.merge(empty)
    assert (whole.steps, whole.length) == (3, 3.0)


def test_positions_that_no_draft_reached_have_no_share() -> None:
    assert counted(3, [1, 0, 0]).by_position == [1.0, None, None]


def test_parts_add_up() -> None:
    whole = counted(3, [2, 0, 1, 0])
    whole.merge(counted(3, [3] * 9))
    assert (whole.tokens, whole.steps) == (13, 2 + 3)
