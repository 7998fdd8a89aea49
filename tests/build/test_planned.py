"""A spec that names a plan: what is built for it, what is refused, and that it answers like plain decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from build.embedded_checks import embedded_findings
from build.identity import identity
from build.targets.architecture import Architecture
from cli.main import app
from deployments.spec import DeploymentSpec, load_spec
from engine.control.controller import Controller
from engine.deployment import open_engine
from engine.fingerprint import Fingerprint
from engine.plan import Plan
from engine.planned import drafting, section_of, speculator_directories
from engine.request import GenerationRequest
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.engine.driving import run
from tests.planner.synthetic_plan import of_deployment, plan_from
from tests.planner.synthetic_profile import profile, records
from tests.ports import free_ports

ANPD = {"method": "anpd", "draft_length": 6}
LOOKUP = {"method": "prompt_lookup", "draft_length": 4}


def cheap(context: int, batch: int, size: int) -> float:
    return 10.0 + 0.1 * batch * size


def dear(context: int, batch: int, size: int) -> float:
    return 10.0 * batch * size


def drafthouse(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planned")
    config = tiny_config("llama", head_dim=32, max_position_embeddings=256)
    write_huggingface(root / "tiny", config, random_weights(Architecture.from_config(config)))
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    spec = {
        "name": "served",
        "target": {"model": "tiny"},
        "engine": {"max_sequence_length": 256, "max_batch_size": 2, "threads": 2},
        "speculation": {"plan": "plan.json"},
        "serving": {**ports, "repository": "repository"},
    }
    (root / "spec.yaml").write_text(yaml.safe_dump(spec))
    return root


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    write(planned())


_PLANS: dict[str, Plan] = {}


def planned(cost: Any = cheap, **sections: dict[str, Any]) -> Plan:
    """Of `spec.yaml`; the same one for the same arguments."""
    here = Fingerprint.of(load_spec(Path("spec.yaml")))
    key = repr((cost, sections, here))
    if key not in _PLANS:
        found = [
            of_deployment(profile(records(rate, drafted=4), cost, name=name), section, here)
            for rate, (name, section) in zip(
                (0.6, 0.9), (sections or {"a": ANPD, "b": LOOKUP}).items(), strict=False
            )
        ]
        _PLANS[key] = plan_from(found, (1, 2))
    return _PLANS[key]


def write(plan: Plan) -> None:
    Path("plan.json").write_text(plan.model_dump_json())


def test_what_is_best_somewhere_is_loaded_and_nothing_else() -> None:
    spec = load_spec(Path("spec.yaml"))
    assert [(each.name, each.speculation.method) for each in drafting(spec)] == [("b", "prompt_lookup")]
    write(planned(dear))
    assert [each.speculation.method for each in drafting(spec)] == ["none"]


def test_the_repository_keeps_the_plan_that_it_was_built_from(place: Path) -> None:
    status, output = drafthouse("build", "spec.yaml")
    assert status == 0, output
    model = place / "repository" / "tensorrt_llm"
    parameters = text_format.Parse(
        (model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
    ).parameters
    built = identity(load_spec(Path("spec.yaml")))
    write(planned(dear))
    assert identity(load_spec(Path("spec.yaml"))) != built
    spec = DeploymentSpec.model_validate_json(parameters["deployment"].string_value)
    assert [each.name for each in drafting(spec)] == ["b"]
    directories = json.loads(parameters["speculator_paths"].string_value)
    engine, _ = open_engine(
        spec,
        Path(parameters["gpt_model_path"].string_value),
        {name: Path(path) for name, path in directories.items()},
    )
    prompt = tuple([5, 6, 7, 8] * 6)
    drafted, plain = run(
        engine,
        [GenerationRequest(prompt, 40), GenerationRequest(prompt, 40, draft_length=0)],
    )
    assert drafted.tokens == plain.tokens
    assert drafted.last.metrics.total_draft_tokens and not plain.last.metrics.total_draft_tokens


def test_costs_of_another_kernel_are_those_of_another_kit(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path("libdrafthouse-0123456789abcdef.so")
    monkeypatch.setattr("engine.native.build.library_path", lambda: other)
    monkeypatch.setattr("engine.native.library.instructions", lambda: "avx2")
    status, output = drafthouse("build", "--check", "spec.yaml")
    assert status == 2, output
    assert "kit was drafthouse" in output
    assert "kernel 0123456789abcdef" in output


def test_it_is_checked_before_anything_is_built() -> None:
    status, output = drafthouse("build", "--check", "spec.yaml")
    assert status == 0, output


def test_keys_that_profiles_write_and_nobody_set_are_no_settings() -> None:
    given = {"method": "eagle3", "checkpoint": "heads", "architecture": "llama3", "draft_length": 3}
    section = section_of("c", given)
    assert section.model_fields_set == {"method", "checkpoint"}
    spec = load_spec(Path("spec.yaml")).model_copy(update={"speculation": section})
    assert not [found for found in embedded_findings(spec) if found.name == "setting-without-effect"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_sha256": "f" * 64}, "model_sha256 was ffffffffffff, is "),
        ({"threads": 64}, "threads was 64, is 2"),
        ({"processor": "a better one"}, "processor was a better one, is "),
        ({"kit": "drafthouse 0"}, "kit was drafthouse 0, is "),
        ({"precision": "fp32"}, "precision was fp32, is int8"),
    ],
)
@pytest.mark.parametrize("command", [["build", "--check"], ["build"], ["serve"]])
def test_a_plan_of_something_else_is_refused_with_what_to_run(
    changes: dict[str, Any], told: str, command: list[str]
) -> None:
    plan = planned()
    write(plan.model_copy(update={"fingerprint": plan.fingerprint.model_copy(update=changes)}))
    status, output = drafthouse(*command, "spec.yaml")
    assert status == 2 and told in output
    assert "profile a and b again with `drafthouse profile`, then run `drafthouse plan`" in output


@pytest.mark.parametrize(
    ("changes", "served"),
    [
        ({"threads": 64}, True),
        ({"processor": "another"}, True),
        ({"kit": "old"}, True),
        ({"precision": "fp32"}, False),
    ],
)
def test_a_plan_of_another_machine_is_served_where_costs_are_measured_at_start(
    changes: dict[str, Any], served: bool
) -> None:
    plan = planned()
    write(plan.model_copy(update={"fingerprint": plan.fingerprint.model_copy(update=changes)}))
    _, refused = drafthouse("build", "--check", "spec.yaml")
    assert ("or set speculation.calibrate, which measures costs at every start" in refused) == served
    spec = yaml.safe_load(Path("spec.yaml").read_text())
    spec["speculation"]["calibrate"] = True
    Path("calibrated.yaml").write_text(yaml.safe_dump(spec))
    status, output = drafthouse("build", "--check", "calibrated.yaml")
    assert (status == 0) == served, output
    assert "set speculation.calibrate" not in output


def test_costs_are_measured_at_start_only_where_that_is_asked_for(place: Path) -> None:
    status, output = drafthouse("build", "spec.yaml")
    assert status == 0, output
    spec = load_spec(Path("spec.yaml"))
    plan, told = planned(), list[str]()
    for calibrate in (False, True):
        asked = spec.model_copy(
            update={"speculation": spec.speculation.model_copy(update={"calibrate": calibrate})}
        )
        engine, _ = open_engine(asked, spec.engine_directory, speculator_directories(asked), tell=told.append)
        assert isinstance(engine.policy, Controller)
        costs = engine.policy.costs.planned(32, 1, 1)
        assert (costs == pytest.approx(plan.verify_costs[0].ms)) == (not calibrate)
        assert len(told) == calibrate
    assert told[0].startswith("costs of ") and "\n" not in told[0]
    drafted, plain = run(
        engine,
        [GenerationRequest((5, 6, 7, 8) * 6, 40), GenerationRequest((5, 6, 7, 8) * 6, 40, draft_length=0)],
    )
    assert drafted.tokens == plain.tokens


def test_a_plan_that_says_none_is_served_under_the_name_of_what_was_planned() -> None:
    """As a spec has it whose own section gave way to its plan."""
    write(planned(dear))
    spec = yaml.safe_load(Path("spec.yaml").read_text()) | {"name": "a"}
    Path("own.yaml").write_text(yaml.safe_dump(spec))
    status, output = drafthouse("build", "--check", "own.yaml")
    assert status == 0, output


def test_a_drafter_that_has_changed_since_is_refused() -> None:
    plan = planned()
    other = plan.deployments["b"].model_copy(
        update={"drafter": {"method": "prompt_lookup", "draft_length": 9}}
    )
    write(plan.model_copy(update={"deployments": {**plan.deployments, "b": other}}))
    status, output = drafthouse("build", "--check", "spec.yaml")
    assert status == 2 and "speculation.draft_length was 9, is 4 (b)" in output
    assert "calibrate" not in output


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "plan.json cannot be read (No such file or directory); run `drafthouse plan`"),
        ("{}", "plan.json is damaged or of another release; run `drafthouse plan`"),
        ('{"format": 1}', "plan.json is damaged or of another release"),
    ],
)
@pytest.mark.parametrize("command", [["build", "--check"], ["build", "--dry-run"], ["serve"], ["loadtest"]])
def test_a_plan_that_is_none_is_refused(content: str | None, told: str, command: list[str]) -> None:
    Path("plan.json").unlink() if content is None else Path("plan.json").write_text(content)
    status, output = drafthouse(*command, "spec.yaml")
    assert status == 2 and told in output


@pytest.mark.parametrize("part", ["verify_costs", "deployments"])
def test_a_plan_that_lacks_a_part_of_what_it_serves_is_refused_before_it_is_built(part: str) -> None:
    content = json.loads(planned().model_dump_json())
    content[part].pop(3 if part == "verify_costs" else "b")
    Path("plan.json").write_text(json.dumps(content))
    status, output = drafthouse("build", "--check", "spec.yaml")
    assert status == 2 and "plan.json is damaged or of another release; run `drafthouse plan`" in output


@pytest.mark.parametrize("command", ["profile", "plan"])
def test_what_serves_a_plan_is_no_deployment_to_plan_for(command: str) -> None:
    status, output = drafthouse(command, "spec.yaml")
    assert status == 2 and f"served serves a plan, plan.json; {command} the deployments" in output


def test_what_the_plan_drafts_with_is_checked_too() -> None:
    plan = planned()
    other = plan.deployments["b"].model_copy(update={"speculation": {**LOOKUP, "drafted_by": "bls"}})
    write(plan.model_copy(update={"deployments": {**plan.deployments, "b": other}}))
    status, output = drafthouse("build", "--check", "spec.yaml")
    assert status == 2 and "the plan names b, for which the engine does not draft" in output


@pytest.mark.parametrize("engine", [{"kind": "vllm"}, {"kind": "tensorrt_llm", "line": "A"}])
def test_other_engines_say_who_serves_plans(engine: dict[str, str]) -> None:
    spec = yaml.safe_load(Path("spec.yaml").read_text()) | {"engine": engine}
    Path("other.yaml").write_text(yaml.safe_dump(spec))
    status, output = drafthouse("build", "--check", "other.yaml")
    assert status == 2 and "does not serve plans" in output and "engine.kind: embedded" in output
