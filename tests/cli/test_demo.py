"""`drafthouse demo` up to its servers: what it plans, builds and serves beside the others, and its last words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from build.targets.architecture import Architecture
from cli import demo
from cli.main import app
from deployments.spec import DeploymentSpec, load_spec
from deployments.speculation import PlannedSpeculation
from engine.plan import load_plan
from engine.planned import check_plan, drafting
from loadtest.report import write_report
from loadtest.schema import Report
from loadtest.settings import Arm, SweepSettings
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.loadtest.synthetic import simulate_sweep
from tests.planner.synthetic_plan import plan_from
from tests.planner.synthetic_profile import profile, records
from tests.ports import free_ports

Sections = Sequence[dict[str, Any]]
ANPD = {"method": "anpd", "draft_length": 4}
SERVED = 50.0
LOOKUP = {"method": "prompt_lookup", "draft_length": 3}


def write(folder: Path, name: str, section: dict[str, Any], ports: Sequence[int], **engine: Any) -> Path:
    path = folder / f"{name}.yaml"
    keys = ("http_port", "grpc_port", "metrics_port")
    spec = {
        "name": name,
        "target": {"model": "tiny"},
        "engine": {"max_sequence_length": 256, "max_batch_size": 2, "threads": 2, **engine},
        "speculation": section,
        "serving": dict(zip(keys, ports, strict=True)),
        "loadtest": {"prompts": "prompts.jsonl", "concurrency": [1, 2, 4], "max_tokens": 16},
    }
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = tiny_config("llama", head_dim=32, max_position_embeddings=256)
    write_huggingface(tmp_path / "tiny", config, random_weights(Architecture.from_config(config)))
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"text": "ab " * 9 + str(n)}) + "\n" for n in range(3))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Outside:
    """Stands for Triton and Locust: notes what would be served and measured, and gives the sweep's report."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.served: list[DeploymentSpec] = []
        self.measured: list[str] = []
        monkeypatch.setattr(demo, "watched_server", self.server)
        monkeypatch.setattr(demo, "_greet", lambda spec, address: None)
        monkeypatch.setattr(demo, "sweep", self.sweep)
        monkeypatch.setattr(demo, "serving_loads", self.loads)

    @contextmanager
    def server(self, spec: DeploymentSpec) -> Iterator[Any]:
        self.served.append(spec)
        assert (spec.serving.repository / "ensemble" / "config.pbtxt").is_file()
        yield SimpleNamespace(host="127.0.0.1", grpc_port=spec.serving.grpc_port)

    def loads(
        self, spec: DeploymentSpec, prompts: Path, users: list[int], *, max_tokens: int, rounds: int
    ) -> list[dict[str, Any]]:
        assert spec in self.served
        traffic = {"prompt_tokens": 30.0, "output_tokens": float(max_tokens)}
        return [{"concurrency": count, **traffic, "tokens_per_second": [SERVED] * rounds} for count in users]

    def sweep(
        self, spec: DeploymentSpec, others: list[DeploymentSpec], *_: Any, tell: Any, **__: Any
    ) -> None:
        self.measured = [spec.name, *(each.name for each in others)]
        tell(swept(Path("runs/report"), ["none", "anpd", *(each.speculation.method for each in others)]))


def swept(folder: Path, arms: Sequence[str]) -> Report:
    asked = SweepSettings(
        arms=(Arm(name="none", num_draft_tokens=0), *(Arm(name=arm) for arm in arms[1:])),
        concurrency=(1, 2),
        rounds=2,
        max_tokens=16,
    )
    simulate_sweep(folder, asked)
    return write_report(folder)


@pytest.mark.usefixtures("one_plot")
def test_a_plan_of_all_deployments_is_served_beside_them(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    outside = Outside(monkeypatch)
    ports = free_ports(6)
    a, b = write(place, "a", ANPD, ports[:3]), write(place, "b", LOOKUP, ports[3:])
    result = CliRunner().invoke(app, ["demo", str(a), "--beside", str(b)])
    output = " ".join(result.output.split())
    assert result.exit_code == 0, output
    assert outside.measured == ["a", "b", "a-plan"] == [spec.name for spec in outside.served]
    planned = outside.served[-1]
    assert isinstance(planned.speculation, PlannedSpeculation)
    plan = load_plan(planned.speculation.plan)
    assert list(plan.deployments) == ["a", "b"]
    plain = [one for cell in plan.cells for one in cell.candidates if one.candidate.deployment is None]
    assert [one.tokens_per_second.value for one in plain] == pytest.approx([SERVED] * len(plain), rel=0.2), (
        "what serving adds is known, though the service was asked other prompts than those that were profiled"
    )
    assert sorted({cell.concurrency for cell in plan.cells}) == [1, 2], "as many as the deployment takes"
    check_plan(planned)
    assert {each.name for each in drafting(planned)} <= {"a", "b", "a-plan"}
    assert "The plan for 1 user, prompts of " in output and " Measured under load: " in output
    assert output.index("the plan's choice") < output.index("The plan for 1 user")
    assert not Path("runs/profile").exists(), "what a user has measured stays"


def test_its_ports_and_places_are_nobody_else_s(place: Path) -> None:
    specs = [
        load_spec(write(place, name, ANPD, range(first, first + 3)))
        for name, first in (("a", 8000), ("b", 8010))
    ]
    planned = demo.planned_beside(specs)
    assert planned is not None and planned.name == "a-plan"
    serving = planned.serving
    assert (serving.http_port, serving.grpc_port, serving.metrics_port) == (8013, 8014, 8015)
    assert serving.repository not in {spec.serving.repository for spec in specs}


def test_where_no_plan_can_be_made_there_is_none(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Of engines that serve none, and of requests too short for costs; the rest of the demo goes on."""
    spec = load_spec(write(place, "a", {"method": "none"}, range(8000, 8003)))
    assert demo.planned_beside([spec]) is None
    outside = Outside(monkeypatch)
    path = write(place, "short", ANPD, free_ports(3), max_sequence_length=64)
    result = CliRunner().invoke(app, ["demo", str(path)])
    output = " ".join(result.output.split())
    assert result.exit_code == 0, output
    assert "no plan: " in output and outside.measured == ["short"] and "The plan for" not in output


@pytest.mark.usefixtures("one_plot")
def test_the_curve_has_what_was_predicted_and_what_came(tmp_path: Path) -> None:
    plan = plan_from([profile(records(0.7), lambda context, batch, size: 10 + 0.1 * batch * size)], (1, 2, 8))
    report = swept(tmp_path / "run", ["none", "anpd", "plan"])
    context = plan.cells[0].context
    table = demo.curve_table(plan, context, report)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["users"] == ["1", "2", "8"]
    predicted = [cell.best.tokens_per_second.value for cell in plan.cells if cell.context == context]
    assert columns["predicted"] == [f"{value:.0f}" for value in predicted]
    rates = {(point.level, point.arm): point.output_tokens_per_second for point in report.points}
    assert columns["plan"] == [f"{rates[1, 'plan']:.0f}", f"{rates[2, 'plan']:.0f}", "-"]
    times = (rates[1, "plan"] or 0) / (rates[1, "none"] or 1)
    assert demo.closing(plan, context, report).endswith(f"{times:.2f} times none.")
