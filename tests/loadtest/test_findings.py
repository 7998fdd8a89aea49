"""What a sweep comes to in sentences, and what it has against its own figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from loadtest.comparison import speed_ups
from loadtest.findings import doubts, findings
from loadtest.measures import MeasuredCell
from loadtest.records import CellRecord, RequestRecord
from loadtest.schema import Report
from loadtest.servers import Server
from loadtest.settings import Arm, Deployment, SweepSettings
from loadtest.summary import summarise
from tests.loadtest.synthetic import record, simulate_sweep

ARMS = (Arm(name="none", num_draft_tokens=0), Arm(name="anpd"))
SERVERS = [
    Server(arm=arm.name, host="h:1", deployment=Deployment(name="d", spec="s"), cache="salted", salts=True)
    for arm in ARMS
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Drafts pay for one user and not for sixteen."""
    arms = (*ARMS, Arm(name="other"))
    settings = SweepSettings(arms=arms, concurrency=(1, 16), rounds=2, max_tokens=16)
    return summarise(simulate_sweep(tmp_path_factory.mktemp("findings") / "run", settings))


def test_findings_name_the_turning_point(report: Report) -> None:
    text = " ".join(findings(report))
    assert "At 1 user, anpd gives" in text
    assert "anpd is faster at 1 user and slower at 16 users." in text


def test_one_load_is_not_called_every_load(report: Report) -> None:
    single = [each for each in report.speedups if each.level == 1]
    text = " ".join(findings(report.model_copy(update={"speedups": single})))
    assert "At 1 user, anpd gives" in text and "every concurrency" not in text


@pytest.mark.parametrize(
    ("rate", "told"), [(0.0, "had not one drafted token accepted"), (1.0, "had every drafted token accepted")]
)
def test_acceptance_at_an_extreme_is_suspect(rate: float, told: str, report: Report) -> None:
    baseline, *others = report.arms
    extreme = [arm.model_copy(update={"acceptance_rate": rate}) for arm in others]
    text = " ".join(findings(report.model_copy(update={"arms": [baseline, *extreme]})))
    assert all(f"{arm.arm} {told}" in text for arm in extreme)
    assert "drafted token" not in " ".join(findings(report))


def cell(arm: str, round_number: int, *requests: RequestRecord, drained: bool = True) -> MeasuredCell:
    name = f"{arm}{round_number}"
    facts = CellRecord(name, arm, "c8", round_number, 0, 1, len(requests), drained, None, None)
    return MeasuredCell.of(facts, requests)


def requests(ttft: float, seconds: float, first: int = 0, **changes: object) -> list[RequestRecord]:
    """Four requests for prompts of their own."""
    made = [
        record([ttft, 1000 * seconds], [1, 9], index=index, prompt_id=str(first + index))
        for index in range(4)
    ]
    return [dataclasses.replace(each, **changes) for each in made]  # type: ignore[arg-type]


def told(
    cells: Sequence[MeasuredCell], rounds: int = 2, servers: Sequence[Server] = SERVERS, **changes: object
) -> str:
    settings = SweepSettings(arms=ARMS, concurrency=(8,), rounds=rounds, **changes)  # type: ignore[arg-type]
    return " ".join(doubts(settings, servers, cells, speed_ups(settings, cells)))


def sweep(
    *seconds: float, ttft: Sequence[float] = (100, 100, 100, 100), **changes: object
) -> list[MeasuredCell]:
    """None and anpd in the first round, then in the second."""
    places = (("none", 0), ("anpd", 0), ("none", 1), ("anpd", 1))
    return [
        cell(arm, number, *requests(first, duration, 4 * number, **changes))
        for (arm, number), duration, first in zip(places, seconds, ttft, strict=False)
    ]


def test_a_sound_sweep_has_none() -> None:
    assert told(sweep(2.0, 1.0, 2.1, 1.0, blocks=10, reused_blocks=0)) == ""
    assert told([]) == ""


def test_one_round() -> None:
    assert "Every cell was measured once" in told(sweep(2.0, 1.0), rounds=1)


def test_rounds_that_disagree() -> None:
    text = told(sweep(7.2, 2.0, 2.2, 2.0))
    assert (
        "The rounds disagree about anpd at 8 users: 1.10 times the baseline in one, 3.60 in another." in text
    )


def test_first_tokens_that_came_from_a_cache() -> None:
    """The case that gave rise to it: what came second found its prompts read."""
    text = told(sweep(8.0, 2.0, 2.0, 2.0, ttft=(6_800, 100, 120, 110)))
    assert "Time to first token of none at 8 users was 6,800 ms in one round and 120 ms in another" in text
    assert "of anpd" not in text.split("Time to first token")[1]


def test_a_busy_machine_is_not_taken_for_a_cache() -> None:
    """Where the server tells that both rounds found the same."""
    text = told(sweep(8.0, 2.0, 2.0, 2.0, ttft=(6_800, 100, 120, 110), blocks=10, reused_blocks=0))
    assert "Time to first token" not in text and "The rounds disagree" in text


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_prompts_that_repeat(cache: str) -> None:
    cells = sweep(2.0, 1.0, 2.0, 1.0)
    again = [cell(each.cell.arm, each.cell.round, *requests(100, 2.0)) for each in cells]
    text = told(again, cache=cache)
    assert "Prompts repeat: the 8 measured requests of an arm at 8 users come from 4 prompts" in text


def test_a_cold_cache_that_was_not() -> None:
    found = sweep(2.0, 1.0, 2.0, 1.0, blocks=10, reused_blocks=6)
    assert (
        "The cache was not cold: 60 % of the KV cache blocks of none were found filled (state: salted)"
        in told(found)
    )
    assert "not cold" not in told(found, cache="warm")


def test_a_warm_cache_that_was_too_small() -> None:
    """900 tokens of prompt and 10 of output in 29 blocks: some 28 could have been found."""
    prompts = {"blocks": 29, "input_tokens": 900}
    text = told(sweep(2.0, 1.0, 2.0, 1.0, **prompts, reused_blocks=0), cache="warm")
    assert (
        "The cache was not warm: 0 % of the KV cache blocks of none were found filled, where about 95 %"
        in text
    )
    assert told(sweep(2.0, 1.0, 2.0, 1.0, **prompts, reused_blocks=28), cache="warm") == ""
    short = {"blocks": 1, "input_tokens": 20}
    assert told(sweep(2.0, 1.0, 2.0, 1.0, **short, reused_blocks=0), cache="warm") == ""


def test_a_server_that_does_not_say_who_it_is() -> None:
    silent = [server.model_copy(update={"deployment": None}) for server in SERVERS]
    text = told(sweep(2.0, 1.0, 2.0, 1.0), servers=silent)
    assert text.count("h:1 does not say which deployment it serves") == 1


def test_a_server_that_was_still_busy() -> None:
    cells = [*sweep(2.0, 1.0), cell("none", 1, *requests(100, 2.0, 4), drained=False)]
    assert "After 1 cell the server still had requests running" in told(cells)
