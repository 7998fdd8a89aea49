"""Sweeps against real servers that keep prompts: all arms find the same in their caches, and the right one answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.records import RequestRecord
from loadtest.run_directory import RunDirectory, RunDirectoryError
from loadtest.servers import ServerError, deployment_of, describe
from loadtest.settings import Arm, Deployment, SweepSettings
from loadtest.sweep import run_sweep
from tests.loadtest.conftest import Server, start_triton

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("one_plot")]

MINE = {"drafthouse_deployment": "mine", "drafthouse_spec": "5bec", "drafthouse_prefix_cache": "true"}
OTHER = {"drafthouse_deployment": "other", "drafthouse_spec": "07e5", "drafthouse_weights": "3e19"}


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = start_triton(tmp_path_factory.mktemp("mine"), who=MINE)
    yield started
    started.triton.kill()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A deployment beside the first, with a cache of its own and without salts."""
    started = start_triton(tmp_path_factory.mktemp("other"), who=OTHER, salts=False)
    yield started
    started.triton.kill()


def settings(server: Server, **changes: Any) -> SweepSettings:
    given: dict[str, Any] = {
        "host": server.grpc,
        "metrics_url": server.metrics_url,
        "max_tokens": 9,
        "arms": (Arm(name="none", num_draft_tokens=0), Arm(name="fast")),
        "concurrency": (2,),
        "rounds": 2,
        "requests": 6,
    }
    return SweepSettings(**{**given, **changes})


def beside(server: Server, **changes: Any) -> Arm:
    return Arm(name="beside", host=server.grpc, metrics_url=server.metrics_url, **changes)


def measured(run: Path, arm: str) -> list[RequestRecord]:
    cells = [records for cell, records in RunDirectory(run).finished() if cell.arm == arm]
    return [record for records in cells for record in records if record.role == "measured"]


def test_cold_no_request_finds_its_prompt(mine: Server, tmp_path: Path) -> None:
    """Not in the second arm, not in the second sweep, and not where prompts repeat within a cell."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"say {number}"}) for number in range(4)))
    for name in ("first", "again"):
        report = run_sweep(settings(mine, prompts=prompts), tmp_path / name).report
        assert [point.cache_hits for point in report.points] == [0.0, 0.0]
        assert all(point.ttft is not None and point.ttft.p50 > 40 for point in report.points)
        assert {arm.cache for arm in report.arms} == {"cold: each request has a cache_salt of its own"}
        assert any("Prompts repeat: the 12 measured requests" in doubt for doubt in report.doubts)


def test_warm_every_request_finds_its_prompt(mine: Server, other: Server, tmp_path: Path) -> None:
    """In the first arm as in the others, on a server that has never seen them, in closed and open loops."""
    arms = (Arm(name="none", num_draft_tokens=0), Arm(name="fast"), beside(other))
    asked = settings(mine, arms=arms, cache="warm", request_rates=(20.0,), arrival_seconds=0.3, processes=2)
    report = run_sweep(asked, tmp_path / "run").report
    assert report.complete and len(report.points) == 6
    assert [point.cache_hits for point in report.points] == pytest.approx([0.8] * 6)
    assert {arm.cache for arm in report.arms} == {"warm: each prompt was read once just before its cell"}
    cells = RunDirectory(tmp_path / "run").finished()
    for cell, records in cells:
        read = [record for record in records if record.role == "reading"]
        sent = {record.prompt_id for record in records if record.role != "reading"}
        assert {record.output_tokens for record in read} == {1}
        assert sent == {record.prompt_id for record in read}
        assert max(record.ended_ns for record in read) <= cell.opened_ns
    seen: dict[str, set[str]] = {arm.name: set() for arm in arms}
    again, not_its_own = [], []
    for cell, records in cells:
        for record in (each for each in records if each.role == "reading"):
            own = record.prompt_id in seen[cell.arm]
            again += [record] * own
            not_its_own += [record] * (not own and cell.arm == "fast" and record.prompt_id in seen["none"])
            seen[cell.arm].add(record.prompt_id)
    assert again and all(record.reused_blocks for record in again), "the arm has read them before"
    assert not all(record.reused_blocks for record in not_its_own), "the other arm of that server has"
    due = [
        [record.due_ns - cell.opened_ns for record in records if record.due_ns]
        for cell, records in cells
        if cell.load.endswith("rps") and cell.round == 0
    ]
    assert due[0][:8] == due[1][:8] == due[2][:8]


def test_a_server_without_salts_gets_prompts_of_their_own(
    mine: Server, other: Server, tmp_path: Path
) -> None:
    """And so does the one beside it, or their prompts would differ in length."""
    arms = (Arm(name="none", num_draft_tokens=0), beside(other))
    for name in ("first", "again"):
        report = run_sweep(settings(mine, arms=arms, rounds=1), tmp_path / name).report
        assert [point.cache_hits for point in report.points] == [0.0, 0.0]
        assert {arm.cache for arm in report.arms} == {"cold: each prompt begins with a number of its own"}


def test_a_server_that_keeps_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    forgetful = start_triton(
        tmp_path / "server", who={**MINE, "drafthouse_prefix_cache": "false"}, keeps=False, salts=False
    )
    try:
        report = run_sweep(settings(forgetful, rounds=1), tmp_path / "run").report
        assert {arm.cache for arm in report.arms} == {"cold: the server keeps no prompts"}
        assert [point.cache_hits for point in report.points] == [0.0, 0.0]
        with pytest.raises(ValueError, match="--cache warm: the server of none, fast keeps no prompts"):
            run_sweep(settings(forgetful, cache="warm"), tmp_path / "warm")
    finally:
        forgetful.triton.kill()


def test_the_report_says_who_answered(mine: Server, other: Server, tmp_path: Path) -> None:
    arms = (
        Arm(name="none", num_draft_tokens=0),
        beside(other, deployment=Deployment(name="other", spec="07e5")),
    )
    asked = settings(mine, arms=arms, rounds=1, deployment=Deployment(name="mine", spec="5bec"))
    report = run_sweep(asked, tmp_path / "run").report
    assert [(arm.host, arm.deployment, arm.spec, arm.weights) for arm in report.arms] == [
        (mine.grpc, "mine", "5bec", None),
        (other.grpc, "other", "07e5", "3e19"),
    ]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "07e5, 3e19" in page


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    ("expected", "complaint"),
    [
        (Deployment(name="mine", spec="5bec"), "the deployment other, not mine"),
        (Deployment(name="other", spec="0000"), "as another spec has it"),
        (Deployment(name="other", spec="07e5", weights="0000"), "with other weights than are built here"),
    ],
)
def test_another_deployment_is_refused_before_anything_is_sent(
    other: Server, tmp_path: Path, protocol: Any, expected: Deployment, complaint: str
) -> None:
    host = other.grpc if protocol == "grpc" else other.http
    asked = settings(other, host=host, protocol=protocol, deployment=expected)
    with pytest.raises(ServerError, match=f"none, fast: {host} .*{complaint}"):
        run_sweep(asked, tmp_path / "run")
    assert not (tmp_path / "run" / "cells").exists()


def test_a_missing_server_beside_is_noticed_before_anything_is_sent(mine: Server, tmp_path: Path) -> None:
    gone = Arm(name="gone", host="127.0.0.1:9")
    wrong = settings(mine, arms=(Arm(name="none"), gone), deployment=Deployment(name="another", spec="5bec"))
    with pytest.raises(
        ServerError, match=r"none: .* serves the deployment mine, not another.*; gone: no Triton"
    ):
        run_sweep(wrong, tmp_path / "run")
    assert not (tmp_path / "run" / "cells").exists()


def test_a_server_that_says_nothing_is_measured_with_a_doubt(server: Server, tmp_path: Path) -> None:
    assert deployment_of(describe(server.grpc, "grpc", "ensemble")) is None
    news: list[Any] = []
    asked = settings(server, rounds=1, deployment=Deployment(name="mine", spec="5bec"))
    report = run_sweep(asked, tmp_path / "run", news.append).report
    told = f"{server.grpc} does not say which deployment it serves"
    assert told in [each.get("text") for each in news]
    assert any(told in doubt for doubt in report.doubts)


def test_a_sweep_goes_on_with_its_own_servers_only(mine: Server, other: Server, tmp_path: Path) -> None:
    asked = settings(mine, rounds=1)
    run_sweep(asked, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    (directory.cells / directory.finished()[0][0].name / "cell.json").unlink()
    servers = directory.read_servers()
    changed = [each.model_copy(update={"deployment": Deployment(name="x", spec="y")}) for each in servers]
    directory.servers_file.write_text(json.dumps([each.model_dump() for each in changed]))
    with pytest.raises(RunDirectoryError, match=r"was begun with other servers.*\(none, fast\)"):
        run_sweep(asked, tmp_path / "run")
