"""Predictions beside what was measured: the right cells are compared, and wrong predictions show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.control.errors import ProfileError
from planner.plan.check import Measured, check, verdict
from planner.plan.choose import Option, options, outlook_of
from planner.plan.predict import Traffic
from planner.plan.profiles import Profile
from tests.planner.synthetic_profile import profile, records

LOADS = [Traffic(users, 100, 60) for users in (1, 2, 4)]


@pytest.fixture(scope="module")
def mine() -> Profile:
    """Drafts of up to 15 for one request, of 3 for two, none beyond; lengths are fixed."""
    made = profile(records(0.6), lambda context, batch, size: 10 + batch * size + context / 100)
    section = {
        "method": "anpd",
        "draft_length": 15,
        "adaptive": False,
        "draft_length_schedule": {1: 15, 2: 3},
    }
    return replace(made, speculation=section)


@pytest.fixture(scope="module")
def known(mine: Profile) -> list[Option]:
    return options([mine], 0.0)


def drafted(known: list[Option], load: Traffic, length: int) -> float:
    """The predicted tokens a second with drafts of fixed length."""
    (option,) = (
        each for each in known if each.candidate.draft_length == length and not each.candidate.adaptive
    )
    return outlook_of(option, known[0], load).tokens_per_second.value


def cells(known: list[Option], factor: float = 1.0) -> list[Measured]:
    """What a load test would have measured, were predictions off by a factor."""
    found = []
    for load, length in zip(LOADS, (15, 3, 0), strict=True):
        label = f"c{load.concurrency}"
        found += [
            Measured(label, "none", "mine", 0, load, drafted(known, load, 0) / factor),
            Measured(label, "own", "mine", None, load, drafted(known, load, length) / factor),
        ]
    return found


def test_cells_are_compared_with_what_their_requests_got(mine: Profile, known: list[Option]) -> None:
    found = check([mine], known, cells(known))
    assert [cell.candidate and cell.candidate.draft_length for cell in found] == [0, 15, 0, 3, 0, 0]
    assert max(abs(cell.error) for cell in found) < 1e-9
    told = verdict(found)
    assert (told.cells, told.near, told.inside) == (6, 1.0, 1.0) and told.median_error < 1e-9
    assert told.choices == {"c1": 1.0, "c2": 1.0, "c4": 1.0}


def test_predictions_that_are_off_show(mine: Profile, known: list[Option]) -> None:
    told = verdict(check([mine], known, cells(known, factor=1.5)))
    assert told.median_error == pytest.approx(0.5) and told.near == told.inside == 0.0
    assert told.pace == pytest.approx(1 / 1.5) and told.paced_error < 1e-9 and told.paced_near == 1.0
    assert told.gain_error is not None and told.gain_error < 1e-9
    swapped = cells(known)
    best = max(swapped[:2], key=lambda cell: cell.tokens_per_second)
    swapped[swapped.index(best)] = replace(best, tokens_per_second=best.tokens_per_second / 10)
    told = verdict(check([mine], known, swapped))
    assert told.choices["c1"] < 0.5 and told.pace == pytest.approx(1.0) and told.paced_near < 1.0


def test_a_shorter_length_that_was_asked_for_counts(mine: Profile, known: list[Option]) -> None:
    cell = Measured("c1", "five", "mine", 5, LOADS[0], 50.0)
    (found,) = check([mine], known, [cell])
    assert found.candidate is not None and found.candidate.draft_length == 5


@pytest.mark.parametrize(
    ("section", "nodes"),
    [
        ({"draft_length": 4, "dynamic_tree": {"top_k": 4, "total": 15}}, 15),
        ({"draft_length": 4}, 4),
        ({"draft_length": 4, "dynamic_tree": {"top_k": 4, "total": 15}, "max_concurrency": 1}, 15),
    ],
)
def test_of_a_tree_all_nodes_count_and_of_a_chain_its_length(
    mine: Profile, known: list[Option], section: dict[str, Any], nodes: int
) -> None:
    eagle = replace(
        mine, speculation={"method": "eagle3", "checkpoint": "weights", "adaptive": False, **section}
    )
    theirs = [
        replace(option, candidate=option.candidate.model_copy(update={"method": "eagle3"}))
        for option in known[1:]
        if not option.candidate.adaptive
    ]
    found = check([eagle], [known[0], *theirs], [Measured("c1", "own", "mine", None, LOADS[0], 50.0)])
    assert [cell.candidate and cell.candidate.draft_length for cell in found] == [nodes]


def test_what_cannot_be_predicted_says_why(mine: Profile, known: list[Option]) -> None:
    cells = [
        Measured("c1", "own", "theirs", None, LOADS[0], 50.0),
        Measured("c1", "own", None, None, LOADS[0], 50.0),
        Measured("c64", "none", "mine", 0, Traffic(64, 100, 60), 50.0),
    ]
    found = check([mine], known, cells)
    reasons = [
        "theirs: not profiled here",
        "does not say what it is",
        "covers batches of 1 to 8; 64 is asked",
    ]
    assert all(reason in cell.reason for cell, reason in zip(found, reasons, strict=True))
    with pytest.raises(ProfileError, match="theirs: not profiled here"):
        verdict(found)


def test_a_profile_of_another_release_is_left_out(mine: Profile, known: list[Option]) -> None:
    other = replace(mine, name="other", speculation={"method": "anpd", "window": 3})
    cell = Measured("c1", "own", "other", None, LOADS[0], 50.0)
    *rest, found = check([mine, other], known, [*cells(known), cell])
    assert found.reason == "other: what was profiled is no section of this release"
    assert not any(each.reason for each in rest)
