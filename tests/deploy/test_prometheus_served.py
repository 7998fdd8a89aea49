"""A real Prometheus scrapes a real Triton and the exporter, and answers every query of the dashboard."""

from __future__ import annotations

import json
import math
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.bench.peers.processes import run
from tests.deploy.dashboard import queries
from tests.deploy.test_exporter_triton import running
from tests.deploy.tools import DEPLOY, prometheus
from tests.end_to_end.calls import http_generate
from tests.end_to_end.deployment import Deployment, wait_until
from tests.ports import free_ports

pytestmark = [pytest.mark.outside, pytest.mark.triton]


class Prometheus:
    """A running server."""

    def __init__(self, address: str) -> None:
        self.address = address

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/-/ready", timeout=5):
                return True
        except urllib.error.URLError:
            return False

    def query(self, expression: str) -> dict[str, float]:
        """Values by the last of their labels' values; "" for one without."""
        text = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.address}/api/v1/query?{text}", timeout=10) as answer:
            result = json.loads(answer.read())["data"]["result"]
        return {self._name(item["metric"]): float(item["value"][1]) for item in result}

    @staticmethod
    def _name(labels: dict[str, str]) -> str:
        names = ("model", "request_type", "token_position", "source")
        return next((labels[name] for name in names if name in labels), "")


@contextmanager
def scraping(folder: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """Prometheus with the kit's configuration and rules, on other addresses and every half second."""
    config: dict[str, Any] = yaml.safe_load(
        (DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8")
    )
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    assert [job["job_name"] for job in config["scrape_configs"]] == list(targets)
    for job in config["scrape_configs"]:
        job["static_configs"][0]["targets"] = [targets[job["job_name"]]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (port,) = free_ports(1)
    command = [
        *(str(prometheus("prometheus")), "--config.file", str(folder / "prometheus.yml")),
        *("--storage.tsdb.path", str(folder / "data"), "--web.listen-address", f"127.0.0.1:{port}"),
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        wait_until(server.is_ready, f"Prometheus is ready; see {log.name}", 60)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def load(tiny: Deployment) -> Iterator[None]:
    """More users than there are slots, each with one request after the other."""
    stopped = threading.Event()

    def user(number: int) -> None:
        while not stopped.is_set():
            fields = {"text_input": f"one two three {number}", "max_tokens": 2000, "stream": True}
            http_generate(tiny.http, fields, stream=True)

    users = [threading.Thread(target=user, args=(number,)) for number in range(12)]
    for thread in users:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in users:
            thread.join()


@pytest.fixture(scope="module")
def answers(
    tiny: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, float]]]:
    """What Prometheus answers to the dashboard's queries under load, by panel."""
    metrics = f"127.0.0.1:{tiny.server.metrics_port}"
    options = ("--triton", f"http://{tiny.http}", "--triton-metrics", f"http://{metrics}/metrics")
    with running(*options, "--interval", "0.5") as exporter:
        targets = {"triton": metrics, "exporter": exporter.removeprefix("http://")}
        with scraping(tmp_path_factory.mktemp("prometheus"), targets) as server:

            def found() -> dict[str, dict[str, float]]:
                return {query.panel: server.query(query.expression) for query in queries()}

            def missing() -> list[str]:
                now = found()
                empty = [panel for panel, values in now.items() if not values and panel != "Alerts"]
                return empty or [panel for panel in ("Queue time", "Acceptance rate") if not now[panel][""]]

            with load(tiny):
                wait_until(lambda: not missing(), "every panel has something to show", 120)
                # A scrape may fall between two counters of a step; over many scrapes that no longer shows.
                wait_until(lambda: server.query("min(count_over_time(up[5m]))")[""] > 25, "25 scrapes", 120)
                panels = found()
            wait_until(tiny.is_idle, "nothing runs")
            own = tiny.metrics()["drafthouse_spec_tokens_total/engine"]
            tokens = "sum(drafthouse_spec_tokens_total)"
            wait_until(lambda: server.query(tokens) == {"": own}, "the last tokens are scraped")
            others = {
                "up": "min(up)",
                "source": "drafthouse_acceptance_source_info",
                "length": f"{tokens} / sum(drafthouse_spec_steps_total)",
            }
            yield panels | {name: server.query(expression) for name, expression in others.items()}


def test_no_panel_is_empty_and_every_value_is_a_number(answers: dict[str, dict[str, float]]) -> None:
    for panel, values in answers.items():
        assert values or panel == "Alerts", panel
        assert all(math.isfinite(value) and value >= 0 for value in values.values()), panel
    assert answers["up"] == {"": 1}
    assert answers["source"] == {"engine": 1}


def test_figures_make_sense(answers: dict[str, dict[str, float]], tiny: Deployment) -> None:
    assert answers["Output tokens"][""] > 0
    assert answers["Requests a second"].keys() == {"ensemble", "tensorrt_llm", "tensorrt_llm_bls"}
    assert answers["Requests: batch and queue"]["max"] == tiny.spec.engine.max_batch_size
    assert 0 <= answers["Requests: batch and queue"]["scheduled"] <= tiny.spec.engine.max_batch_size
    assert answers["Steps that acceptance is measured on"].keys() == {"engine"}
    assert 1 < answers["Acceptance length"][""] < 8
    assert 0 < answers["Acceptance rate"][""] <= 1
    positions = answers["Acceptance by position"]
    assert positions.keys() <= {str(position) for position in range(1, 8)} and "1" in positions
    assert all(0 <= value <= 1.02 for value in (*positions.values(), answers["KV cache used"][""]))
    assert 0 < answers["Time per output token"][""] < answers["Request latency"]["ensemble"]


def test_acceptance_is_the_engines_own(answers: dict[str, dict[str, float]], tiny: Deployment) -> None:
    """Before any other test asks the server something, the counters mean the steps that its own gauge means."""
    own = tiny.metrics()["trtllm_spec_decode_acceptance_length"]
    assert answers["length"][""] == pytest.approx(own)


def test_promtool_accepts_the_pages(tiny: Deployment) -> None:
    """Types, names, help and labels, without a complaint."""
    with running("--triton", f"http://{tiny.http}", "--interval", "600", "--probe-tokens", "40") as exporter:

        def page() -> str:
            with urllib.request.urlopen(f"{exporter}/metrics", timeout=5) as answer:
                return str(answer.read().decode())

        wait_until(lambda: "drafthouse_spec_steps_total" in page(), "the exporter has probed")
        script = f"'{prometheus('promtool')}' check metrics < page"
        folder = tiny.log.parent
        (folder / "page").write_text(page(), encoding="utf-8")
        assert run(["sh", "-c", script], seconds=60, directory=folder) == ""
