"""The exporter against a real Triton: the embedded engine counts too, so both must agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy.exporter.collector import Collector, Targets
from deploy.exporter.exposition import parse_samples
from deploy.exporter.probe import Probe
from tests.end_to_end.deployment import Deployment, wait_until
from tests.ports import free_ports

pytestmark = pytest.mark.triton

NAMES = ("drafthouse_spec_tokens_total", "drafthouse_spec_steps_total")


def probe(tiny: Deployment, model: str) -> Probe:
    return Probe(f"http://{tiny.http}", model, "one two three four", 120, 7)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_a_probe_counts_what_the_engine_counts(tiny: Deployment, model: str) -> None:
    wait_until(tiny.is_idle, "nothing runs")
    before = tiny.metrics()
    answer = probe(tiny, model).send()
    assert answer.accepted and answer.drafted
    expected = {NAMES[0]: answer.tokens, NAMES[1]: answer.steps}

    def gained() -> dict[str, float]:
        now = tiny.metrics()
        return {name: now[f"{name}/engine"] - before[f"{name}/engine"] for name in NAMES}

    wait_until(lambda: gained() == expected, f"the engine counted {expected}")
    assert answer.tokens == sum(answer.chunks) == 120
    assert len(answer.chunks) == answer.steps == 120 - answer.accepted
    assert 0 < answer.first_token_seconds < answer.seconds


def test_triton_is_read_before_it_is_probed(tiny: Deployment) -> None:
    metrics = f"http://127.0.0.1:{tiny.server.metrics_port}/metrics"
    sends = probe(tiny, "")
    assert Collector(Targets(triton_metrics=metrics), sends).poll() == "engine"
    assert Collector(Targets(), sends).poll() == "perf_metrics"


@contextmanager
def running(*options: str) -> Iterator[str]:
    """The exporter as a process of its own; the address of its page."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "deploy.exporter", "--host", "127.0.0.1", "--port", str(port), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        assert process.stdout and process.stdout.readline().startswith("exporter on")
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_page_is_served(tiny: Deployment) -> None:
    request = ("--prompt", "one two three four", "--probe-tokens", "120")
    with running("--triton", f"http://{tiny.http}", "--interval", "0.1", *request) as address:

        def page() -> str:
            with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
                return str(answer.read().decode())

        def steps() -> list[float]:
            return [sample.value for sample in parse_samples(page()) if sample.name == NAMES[1]]

        wait_until(lambda: sum(steps()) > 120, "several probes were measured")
        assert 'drafthouse_acceptance_source_info{source="perf_metrics"} 1.0' in page()
        with urllib.request.urlopen(f"{address}/healthz", timeout=60) as answer:
            assert answer.status == 200
