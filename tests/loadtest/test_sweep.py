"""Sweeps and Locust's own command against a real Triton server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtest.records import RequestRecord, read_records
from loadtest.run_directory import RunDirectory
from loadtest.servers import ServerError
from loadtest.settings import Arm, SweepSettings
from loadtest.summary import summarise
from loadtest.sweep import run_sweep
from loadtest.terminal import Progress
from tests.loadtest.conftest import Server, start_triton

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("one_plot")]

ROOT = Path(__file__).resolve().parents[2]


def settings(server: Server, **changes: Any) -> SweepSettings:
    given: dict[str, Any] = {
        "host": server.grpc,
        "metrics_url": server.metrics_url,
        "max_tokens": 17,
        "arms": (Arm(name="none", num_draft_tokens=0), Arm(name="fast")),
        "concurrency": (1, 4),
        "rounds": 2,
        "requests": 6,
    }
    return SweepSettings(**{**given, **changes})


@pytest.fixture(scope="module")
def run(server: Server, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished sweep."""
    path = tmp_path_factory.mktemp("sweep") / "run"
    asked = settings(server)
    console = Console(file=(path.parent / "progress").open("w"), force_terminal=True, width=120)
    with Progress(asked, console) as progress:
        result = run_sweep(asked, path, progress)
    assert result.report.complete and not result.interrupted
    return RunDirectory(path)


def test_what_the_server_did_is_found_again(run: RunDirectory) -> None:
    report = summarise(run)
    assert [(point.load, point.arm, point.requests, point.failures) for point in report.points] == [
        ("c1", "none", 12, 0),
        ("c1", "fast", 12, 0),
        ("c4", "none", 16, 0),
        ("c4", "fast", 16, 0),
    ]
    plain, fast = report.arms
    assert plain.acceptance_length == 1.0
    # A first token, then steps of 3 and 1 in turn: 17 tokens in 9 steps, 4 of which accept 2 of 7 drafts.
    assert fast.acceptance_length == pytest.approx(17 / 9)
    assert fast.acceptance_rate == pytest.approx(8 / 56)
    assert all(point.output_tokens_mean == 17 for point in report.points)
    assert [speedup.ceiling for speedup in report.speedups] == pytest.approx([17 / 9, 17 / 9])
    assert all(point.queue is not None and point.queue.p50 == pytest.approx(1.0) for point in report.points)


def test_positions_come_from_tritons_counters(run: RunDirectory) -> None:
    positions = summarise(run).positions
    assert {entry.arm for entry in positions} == {"fast"}
    assert [entry.rate for entry in positions[:2]] == pytest.approx([0.5, 0.5], abs=0.1)
    assert [entry.rate for entry in positions[2:]] == [0.0] * 5


def test_both_arms_sent_the_same(run: RunDirectory) -> None:
    sent: dict[tuple[str, int], dict[str, list[str]]] = {}
    for cell, records in run.finished():
        prompts = [record.prompt_id for record in records if record.role == "measured"]
        sent.setdefault((cell.load, cell.round), {})[cell.arm] = prompts
    assert len(sent) == 4
    for arms in sent.values():
        assert arms["none"] == arms["fast"] and len(set(arms["none"])) == len(arms["none"])


def test_concurrency_is_what_the_cell_says_throughout_its_window(run: RunDirectory) -> None:
    for cell, records in run.finished():
        users = int(cell.load[1:])
        measured = [record for record in records if record.role == "measured"]
        begin, end = min(each.sent_ns for each in measured), max(each.ended_ns for each in measured)
        busy = sum(
            min(each.ended_ns, end) - max(each.sent_ns, begin) for each in records if each.ended_ns > begin
        )
        assert 0.5 * users < busy / (end - begin) <= users + 1e-9
        assert cell.drained


def test_times_are_in_order(run: RunDirectory) -> None:
    for _, records in run.finished():
        for record in records:
            assert list(record.chunk_offsets_ns) == sorted(record.chunk_offsets_ns)
            assert record.ended_ns >= record.sent_ns + max(record.chunk_offsets_ns, default=0)


def test_http_open_loop_processes_and_failures(server: Server, tmp_path: Path) -> None:
    """What the other sweep leaves out, in one: each part is visible in the records on its own."""
    prompts = tmp_path / "prompts.jsonl"
    lines = [
        {"question_id": 1, "category": "good", "turns": ["hello"]},
        {"question_id": 2, "category": "bad", "turns": ["fail at once"]},
    ]
    prompts.write_text("\n".join(json.dumps(line) for line in lines))
    asked = settings(
        server,
        host=server.http,
        protocol="http",
        metrics_url=None,
        concurrency=(2,),
        request_rates=(40.0,),
        arrival_seconds=0.5,
        rounds=1,
        processes=2,
        max_in_flight=16,
        prompts=prompts,
    )
    result = run_sweep(asked, tmp_path / "run")
    report = result.report
    assert report.complete and report.positions == []
    for point in report.points:
        assert point.failures == point.requests / 2
    assert {entry.error for entry in report.failures} == {"ServerError"}
    assert all("this prompt fails" in entry.example for entry in report.failures)
    cells = RunDirectory(result.directory).finished()
    assert len({record.worker for _, records in cells for record in records}) == 2
    due = [
        [record.due_ns - cell.opened_ns for record in records if record.due_ns] for cell, records in cells[2:]
    ]
    assert due[0][:20] == due[1][:20]


def test_an_arm_may_have_a_server_of_its_own(server: Server, tmp_path: Path) -> None:
    other = start_triton(tmp_path / "other")
    try:
        own = Arm(name="elsewhere", host=other.grpc, metrics_url=other.metrics_url)
        arms = (Arm(name="none", num_draft_tokens=0), own)
        before = answered(server)
        result = run_sweep(settings(server, arms=arms, concurrency=(2,), rounds=1), tmp_path / "run")
        sent = {arm: len([*read_all(tmp_path / "run", arm)]) for arm in ("none", "elsewhere")}
        assert answered(server) - before == sent["none"] > 0
        assert answered(other) == sent["elsewhere"] > 0
    finally:
        other.triton.kill()
    assert {entry.arm for entry in result.report.positions} == {"elsewhere"}


def read_all(run: Path, arm: str) -> Iterator[RequestRecord]:
    for path in run.glob(f"cells/*-{arm}/requests-*.jsonl"):
        yield from read_records(path)


def answered(server: Server) -> float:
    """Requests that a server has answered, by its own count, which it publishes late."""
    time.sleep(0.5)
    with urllib.request.urlopen(server.metrics_url) as page:
        lines = page.read().decode().splitlines()
    counter = 'nv_inference_request_success{model="ensemble"'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(counter))


def test_no_server(tmp_path: Path) -> None:
    asked = SweepSettings(host="127.0.0.1:9", metrics_url=None, concurrency=(1,), rounds=1)
    with pytest.raises(
        ServerError, match=r"none, speculative: no Triton server answers grpc at 127\.0\.0\.1:9"
    ):
        run_sweep(asked, tmp_path / "run")


INTERRUPTED = """
import sys
from pathlib import Path
from loadtest.settings import SweepSettings
from loadtest.sweep import run_sweep

settings = SweepSettings.model_validate_json(sys.argv[1])
result = run_sweep(settings, Path(sys.argv[2]), lambda news: print(news["event"], flush=True))
print("interrupted", result.interrupted, result.report.complete)
"""


def test_ctrl_c_keeps_what_is_finished(server: Server, tmp_path: Path) -> None:
    asked = settings(server, concurrency=(1,), rounds=4, max_tokens=40)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, asked.model_dump_json(), str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    cells = 0
    while cells < 4:  # two of warm-up, one measured, and the one that is to be interrupted
        line = process.stdout.readline()
        assert line, "the sweep ended early"
        cells += line.strip() == "cell"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=180)
    assert output.splitlines()[-1] == "interrupted True False"
    assert not locust_processes(tmp_path)
    finished = {cell.name: cell for cell, _ in RunDirectory(tmp_path / "run").finished()}
    assert finished

    news: list[Any] = []
    result = run_sweep(asked, tmp_path / "run", news.append)
    assert result.report.complete
    measured = {each["cell"] for each in news if each["event"] == "cell"}
    assert not measured & set(finished) and len(measured | set(finished)) == 2 + 8
    again = {cell.name: cell for cell, _ in RunDirectory(tmp_path / "run").finished()}
    assert all(again[name] == cell for name, cell in finished.items())


def locust_processes(path: Path) -> list[str]:
    """Processes that measure into a folder."""
    end = time.monotonic() + 60
    while True:
        lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        found = [line for line in lines.splitlines() if "locust" in line and str(path) in line]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def test_locust_by_hand(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py"), "--headless"]
    command += ["--host", f"grpc://{server.grpc}", "-u", "3", "-r", "3", "-t", "2s", "--only-summary"]
    prompts = [
        {"category": category, "text": f"{category} {n}"}
        for category in ("math", "rag", "qa")
        for n in (1, 2)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    options = {"prompts": tmp_path / "prompts.jsonl", "categories": "math,rag", "records": tmp_path}
    options |= {"max-tokens": 9, "num-draft-tokens": 0}
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    records = [record for file in tmp_path.glob("requests-*.jsonl") for record in read_records(file)]
    assert len(records) > 10 and {record.category for record in records} == {"math", "rag"}
    assert {record.draft_tokens for record in records if record.completed} == {0}
    assert {record.output_tokens for record in records if record.completed} == {9}
    assert len({record.prompt_id for record in records}) == 4 < len(records), "prompts came round again"
    assert {record.reused_blocks for record in records if record.completed} == {0}, "and were not found"
    assert "requests completed, 0 failed" in done.stdout and "TPOT us" in done.stderr + done.stdout


def test_locust_by_hand_refuses_a_wrong_scheme(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py"), "--headless"]
    command += ["--host", f"ftp://{server.grpc}", "-t", "1s"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode != 0
    assert "must begin with grpc:// or http://" in done.stderr
