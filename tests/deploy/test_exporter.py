"""Which source the exporter takes, what it exports, and what it leaves out."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.exporter.__main__ import main
from deploy.exporter.collector import Collector, Targets
from deploy.exporter.exposition import parse_samples
from deploy.exporter.probe import Probe
from planner.bench.peers.processes import run
from tests.deploy.answering import Answering
from tests.deploy.test_exporter_probe import INFLIGHT, LLMAPI, ids, llmapi
from tests.deploy.test_exporter_sources import PROMETHEUS, iteration
from tests.deploy.tools import DEPLOY

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens


def collector(server: Answering, triton_metrics: str = "", trtllm_serve: str = "", **probe: Any) -> Collector:
    wanted = Probe(server.url, "", "a b c", 12, probe.get("draft_length", 0)) if probe else None
    return Collector(Targets(triton_metrics, trtllm_serve), wanted)


def exported(of: Collector) -> dict[str, float]:
    """`name/label/label` -> value, labels in the order of their names."""
    samples = parse_samples(of.families.page())
    return {"/".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def test_an_engine_that_counts_itself_is_left_alone(server: Answering) -> None:
    server.pages["/triton"] = PROMETHEUS
    server.model("ensemble", INFLIGHT, ids(1, 2))
    exporter = collector(server, triton_metrics=f"{server.url}/triton", probe=True)
    assert exporter.poll() == "engine"
    assert exported(exporter) == {
        "drafthouse_acceptance_source_info/engine": 1,
        "drafthouse_exporter_target_up/triton": 1,
    }
    assert not any(path.endswith("generate_stream") for path, _ in server.asked)


def test_trtllm_serve_prometheus_is_passed_on_as_it_stands(server: Answering) -> None:
    server.pages["/prometheus/metrics"] = PROMETHEUS
    exporter = collector(server, trtllm_serve=server.url)
    for _ in range(2):
        assert exporter.poll() == "trtllm_prometheus"
    found = exported(exporter)
    assert found["drafthouse_spec_tokens_total/trtllm_prometheus"] == 250
    assert found["drafthouse_spec_steps_total/trtllm_prometheus"] == 100
    assert found["trtllm_spec_decode_accepted_tokens_total/trtllm_prometheus/2"] == 50


def test_iterations_of_several_readings_add_up(server: Answering) -> None:
    exporter = collector(server, trtllm_serve=server.url)
    server.pages["/metrics"] = [iteration(30, 12, 10)]
    assert exporter.poll() == "iteration_stats"
    server.pages["/metrics"] = []  # drained, and nobody asked anything since
    assert exporter.poll() == "iteration_stats"
    server.pages["/metrics"] = [iteration(3, 3, 1)]
    assert exporter.poll() == "iteration_stats"
    found = exported(exporter)
    assert found["drafthouse_spec_tokens_total/iteration_stats"] == 26
    assert found["drafthouse_spec_steps_total/iteration_stats"] == 11
    assert found["trtllm_spec_decode_num_draft_tokens_total/iteration_stats"] == 33
    assert found["trtllm_spec_decode_num_accepted_tokens_total/iteration_stats"] == 15
    assert not any(name.startswith("trtllm_spec_decode_drafted_tokens_total") for name in found)


def test_statistics_that_say_nothing_leave_the_figures_absent(server: Answering) -> None:
    server.pages["/metrics"] = []
    exporter = collector(server, trtllm_serve=server.url)
    assert exporter.poll() == "none"
    assert exported(exporter) == {
        "drafthouse_acceptance_source_info/none": 1,
        "drafthouse_exporter_target_up/trtllm_serve": 1,
    }


def test_chunks_give_length_and_positions_but_no_drafted_total(server: Answering) -> None:
    exporter = collector(server, probe=True)
    server.model("ensemble", INFLIGHT, ids(1, 2, 1, 2, 1))
    assert exporter.poll() == "stream_chunks"
    server.model("ensemble", INFLIGHT, ids(1, 4, 2, 4))
    assert exporter.poll() == "stream_chunks"
    found = exported(exporter)
    assert found["drafthouse_spec_tokens_total/stream_chunks"] == 7 + 11
    assert found["drafthouse_spec_steps_total/stream_chunks"] == 5 + 4
    drafted, accepted = (
        [found[f"trtllm_spec_decode_{what}_tokens_total/stream_chunks/{position}"] for position in (1, 2, 3)]
        for what in ("drafted", "accepted")
    )
    # Five steps between first and last chunks: 2, 1, 2 and 4, 2 tokens.
    assert drafted == [5, 5, 5]
    assert accepted == [4, 1, 1]
    assert not any("num_draft_tokens" in name or "num_accepted_tokens" in name for name in found)
    assert found["drafthouse_probes_total/measured"] == 2


def test_a_server_that_goes_away_and_comes_back(
    server: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    exporter = collector(server, probe=True, draft_length=3)
    for _ in range(3):
        assert exporter.poll() == "none"
    assert exported(exporter) == {
        "drafthouse_acceptance_source_info/none": 1,
        "drafthouse_probes_total/unanswered": 3,
        "drafthouse_configured_draft_length": 3,
    }
    assert capsys.readouterr().err.count("acceptance is not known") == 1
    server.model("tensorrt_llm", LLMAPI, llmapi(5))
    assert exporter.poll() == "stream_chunks"
    assert "drafthouse_probe_first_token_seconds" in exported(exporter)
    server.pages.clear()
    assert exporter.poll() == "none"
    found = exported(exporter)
    assert found["drafthouse_acceptance_source_info/none"] == 1
    assert "drafthouse_acceptance_source_info/stream_chunks" not in found
    assert "drafthouse_probe_first_token_seconds" not in found
    assert found["drafthouse_spec_steps_total/stream_chunks"] == 5


def test_nothing_is_sent_to_a_triton_whose_metrics_are_away(server: Answering) -> None:
    server.model("ensemble", INFLIGHT, ids(1, 2))
    exporter = collector(server, triton_metrics=f"{NOBODY}/metrics", probe=True)
    assert exporter.poll() == "none"
    assert exported(exporter)["drafthouse_exporter_target_up/triton"] == 0
    assert not server.asked


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "name at least one"),
        (["--triton", "localhost:8000"], "must be an http"),
        (["--triton", "http://x", "--interval", "0"], "above 0"),
        (["--triton", "http://x", "--port", "many"], "invalid int"),
    ],
)
def test_options_that_cannot_work(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_its_image_needs_no_package(tmp_path: Path) -> None:
    """What deploy/exporter/Dockerfile copies runs without site-packages."""
    folder = tmp_path / "deploy" / "exporter"
    folder.mkdir(parents=True)
    for path in (DEPLOY / "exporter").glob("*.py"):
        shutil.copy(path, folder)
    shutil.copy(DEPLOY / "__init__.py", folder.parent)
    printed = run([sys.executable, "-S", "-m", "deploy.exporter", "--help"], seconds=30, directory=tmp_path)
    assert "EXPORTER_TRITON_METRICS" in printed
