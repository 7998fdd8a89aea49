"""`drafthouse plan` on a tiny model, from its profile to its files; and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from build.targets.architecture import Architecture
from cli.main import app
from deployments.spec import load_spec
from engine.plan import load_plan
from loadtest.servers import Server
from loadtest.settings import Arm, Deployment, SweepSettings
from planner.plan.profiles import read_profile
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.loadtest.synthetic import simulate_sweep
from tests.ports import free_ports

LEVELS = ["--batch", "1", "--batch", "2"]
SCHEDULE = "draft_length_schedule"


def drafthouse(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a deployment that has been profiled."""
    root = tmp_path_factory.mktemp("plan")
    config = tiny_config("llama", head_dim=32, max_position_embeddings=256)
    write_huggingface(root / "tiny", config, random_weights(Architecture.from_config(config)))
    spec = {
        "name": "x",
        "target": {"model": "tiny"},
        "engine": {"max_sequence_length": 256, "max_batch_size": 2, "threads": 2},
        "speculation": {"method": "anpd", "draft_length": 4},
        "serving": dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True)),
    }
    (root / "spec.yaml").write_text(yaml.safe_dump(spec))
    lines = [json.dumps({"text": "ab " * 9 + str(n)}) + "\n" for n in range(3)]
    (root / "prompts.jsonl").write_text("".join(lines))
    # Its service is not asked what is longer than it takes.
    longer = [json.dumps({"text": "ab " * 300 + str(n)}) + "\n" for n in range(20)]
    (root / "profiled.jsonl").write_text("".join([*lines, *longer]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        options = ["--count", "3", "--max-tokens", "16", "--temperature", "0", "--rounds", "2"]
        contexts = ["--context", "8", "--context", "100"]
        status, output = drafthouse(
            "profile", "spec.yaml", "--prompts", "profiled.jsonl", *options, *contexts, *LEVELS
        )
        assert status == 0, output
        loads = read_profile(Path("runs/profile/x")).serving
        assert [load["concurrency"] for load in loads] == [1, 2]
        assert all(load["output_tokens"] <= 16 and len(load["tokens_per_second"]) == 2 for load in loads)
    return root


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_it_answers_and_writes_what_can_be_served() -> None:
    load = ["--concurrency", "1,2", "--prompt-tokens", "40", "--output-tokens", "20"]
    status, output = drafthouse("plan", "spec.yaml", *load)
    assert status == 0, output
    assert "2 users, prompts of 40 tokens and answers of 20: " in output
    plan = load_plan(Path("runs/plan/x/plan.json"))
    assert {(cell.concurrency, cell.context) for cell in plan.cells} == {(1, 50), (2, 50), (1, 100), (2, 100)}
    assert len(plan.cells[0].candidates) == 1 + 4 * 2
    assert Path("runs/plan/x/plan.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(output.splitlines()[-1]) == json.loads(plan.model_dump_json())
    assert "--nextn 4 --nextn-accepted " in output and "--nextn 5 " not in output
    section = output[output.index("speculation:") : output.index("plan, figures and picture")]
    spec = yaml.safe_load(Path("spec.yaml").read_text()) | yaml.safe_load(section)
    Path("pasted.yaml").write_text(yaml.safe_dump(spec))
    assert load_spec(Path("pasted.yaml")).speculation.method in ("none", "anpd")


def test_it_goes_into_the_specs_of_other_engines() -> None:
    spec = yaml.safe_load(Path("spec.yaml").read_text()) | {"name": "theirs", "engine": {"kind": "vllm"}}
    Path("theirs.yaml").write_text(yaml.safe_dump(spec))
    load = ["--concurrency", "1,2", "--prompt-tokens", "40", "--output-tokens", "20"]
    status, output = drafthouse("plan", "spec.yaml", *load, "--into", "theirs.yaml")
    assert status == 0, output
    ours, theirs = (yaml.safe_load(part)["speculation"] for part in sections(output))
    assert theirs == {
        key: value for key, value in ours.items() if key in ("method", "draft_length", SCHEDULE)
    }
    compiled = {"kind": "tensorrt_llm", "line": "A", "runtime": "engines"}
    Path("compiled.yaml").write_text(yaml.safe_dump(spec | {"name": "compiled", "engine": compiled}))
    status, output = drafthouse(
        "plan", "spec.yaml", *load, "--into", "compiled.yaml", "--into", "theirs.yaml"
    )
    assert "theirs, by costs and acceptance of x" in output, "one that cannot does not keep it from others"
    assert (status == 2) == (SCHEDULE in ours) == ("compiled: engines draft the same" in output)
    status, output = drafthouse("plan", "spec.yaml", *load, "--into", "spec.yaml")
    assert status == 2 and "x is for the embedded engine" in " ".join(output.split())


def sections(output: str) -> list[str]:
    """The YAML of each, which ends with an empty line or with what is told beside it."""
    found = output.split("speculation:")[1:]
    return ["speculation:" + part.partition("\n\n")[0].partition("\n{")[0] for part in found]


def test_traffic_can_be_a_file_of_prompts() -> None:
    status, output = drafthouse("plan", "spec.yaml", "--prompts", "prompts.jsonl", "--output-tokens", "20")
    assert status == 0, output
    given = json.loads(Path("runs/profile/x/profile.json").read_text())["prompt_tokens"]
    assert f"1 user, prompts of {given:.0f} tokens" in output


def test_what_is_cached_of_prompts_is_told_and_not_read() -> None:
    load = ["--concurrency", "1", "--prompt-tokens", "60", "--output-tokens", "20"]
    rates = []
    for cached in ("0", "59"):
        status, output = drafthouse("plan", "spec.yaml", *load, "--cached-tokens", cached)
        assert status == 0, output
        assert ("1 user, prompts of 60 tokens (59 of them cached) and" in output) == (cached == "59")
        cells = json.loads(Path("runs/plan/x/plan.json").read_text())["cells"]
        (asked,) = (cell for cell in cells if cell["prompt_tokens"] == 60)
        rates.append(asked["candidates"][0]["ttft_ms"]["value"])
    assert rates[1] < rates[0] / 10


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--prompt-tokens", "200"], "covers contexts of 8 to 100; 232 is asked"),
        (["--concurrency", "4", "--prompt-tokens", "20"], "covers batches of 1 to 2; 4 is asked"),
        (["--temperature", "1"], "no records of temperature 1, only of 0"),
        (
            ["--prompt-tokens", "4", "--output-tokens", "3", "--temperature", "0"],
            "--context 5 --context 6 --batch 1 --batch 2`",
        ),
        (
            ["--concurrency", "2,9", "--prompt-tokens", "20"],
            "--batch 1 --batch 2 --batch 9`, which takes engine",
        ),
        (["--temperature", "0.5"], "--batch 2 --temperature 0.5`"),
    ],
)
def test_what_the_profile_does_not_cover_is_refused_with_what_to_run(options: list[str], told: str) -> None:
    status, output = drafthouse("plan", "spec.yaml", *options)
    output = " ".join(output.split())
    assert status == 2 and told in output and "`drafthouse profile spec.yaml --context " in output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--concurrency", "1,x"], "--concurrency is 1,x; it must be numbers of users"),
        (
            ["--prompt-tokens", "60", "--cached-tokens", "60"],
            "leaves nothing to read of prompts of 60 tokens",
        ),
        (["--ttft", "100"], "--ttft and --tpot are limits of --objective goodput"),
        (["--objective", "goodput"], "needs one of them or both"),
        (["--objective", "goodput", "--ttft", "nan"], "--ttft is nan; it must be a number of milliseconds"),
        (["--objective", "goodput", "--tpot", "-5"], "--tpot is -5; it must be a number of milliseconds"),
        (["--temperature", "-1"], "temperature is -1.0; it must be a finite number"),
        (["--prompts", "prompts.jsonl", "--output-tokens", "999"], "answers of 999 tokens leave no room"),
        (
            ["--prompt-tokens", "9", "--prompts", "prompts.jsonl"],
            "give --prompt-tokens or --prompts, not both",
        ),
    ],
)
def test_options_that_say_nothing_are_refused(options: list[str], told: str) -> None:
    status, output = drafthouse("plan", "spec.yaml", *options)
    assert status == 2 and told in " ".join(output.split())


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("engine", {"max_sequence_length": 256, "max_batch_size": 2, "threads": 1}, "threads was 2, is 1"),
        (
            "engine",
            {"max_sequence_length": 256, "max_batch_size": 2, "threads": 2, "precision": "fp32"},
            "precision was int8, is fp32",
        ),
        ("speculation", {"method": "anpd", "draft_length": 7}, "speculation.draft_length was 4, is 7"),
    ],
)
def test_the_profile_of_something_else_is_refused(key: str, value: dict[str, object], told: str) -> None:
    spec = yaml.safe_load(Path("spec.yaml").read_text()) | {key: value}
    Path("other.yaml").write_text(yaml.safe_dump(spec))
    status, output = drafthouse("plan", "other.yaml")
    output = " ".join(output.split())
    assert status == 2 and told in output and "run `drafthouse profile other.yaml`" in output


def test_another_machine_s_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.fingerprint.processor", lambda: "another one")
    status, output = drafthouse("plan", "spec.yaml")
    assert status == 2 and "is another one" in " ".join(output.split())


def test_without_a_profile_it_says_how_to_get_one() -> None:
    spec = yaml.safe_load(Path("spec.yaml").read_text()) | {"name": "never"}
    Path("never.yaml").write_text(yaml.safe_dump(spec))
    status, output = drafthouse("plan", "never.yaml")
    assert status == 2 and "run `drafthouse profile never.yaml`" in " ".join(output.split())


def test_a_damaged_profile_is_told(tmp_path: Path, place: Path) -> None:
    records = place / "runs/profile/x/records.jsonl"
    kept = records.read_text()
    records.write_text(kept + '{"prompt": 3}\n')
    try:
        status, output = drafthouse("plan", "spec.yaml")
    finally:
        records.write_text(kept)
    assert status == 2 and "is damaged or of another release" in " ".join(output.split())


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("cost", "read"), []),
        (("cost", "verify"), []),
        (("cost", "verify", 0, "ms"), [1.0]),
        (("cost", "verify", 0, "ms"), ["a", "b"]),
        (("cost", "verify", 0, "ms"), [0.0, 0.0]),
        (("cost", "draft", 0), 5),
        (("cost",), [1]),
        (("speculation",), {}),
        (("buckets",), ["a"]),
        (("chunks",), [0, 0]),
        (("prompt_tokens",), "nan"),
        (("serving", 0, "tokens_per_second"), [0.0]),
        (("serving", 1, "output_tokens"), 1),
        (("deployment",), "y"),
    ],
)
def test_a_profile_with_wrong_figures_is_told(
    keys: tuple[str | int, ...], value: object, place: Path
) -> None:
    path = place / "runs/profile/x/profile.json"
    kept = path.read_text()
    found: Any = json.loads(kept)
    inner = found
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(found))
    try:
        status, output = drafthouse("plan", "spec.yaml")
    finally:
        path.write_text(kept)
    assert status == 2 and "no profile of x: " in " ".join(output.split())


def test_answers_of_one_token_are_told(place: Path) -> None:
    records = place / "runs/profile/x/records.jsonl"
    kept = records.read_text()
    lines = [json.loads(line) | {"tokens": 1, "steps": 1, "drafts": []} for line in kept.splitlines()]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        status, output = drafthouse("plan", "spec.yaml", "--prompt-tokens", "40", "--output-tokens", "20")
    finally:
        records.write_text(kept)
    assert status == 2 and "its answers end with their first token" in " ".join(output.split())


def test_profiles_beside_it_that_do_not_cover_the_load_or_are_copies_are_left_out(place: Path) -> None:
    folder = place / "runs/profile"
    records = (folder / "x/records.jsonl").read_text()
    for name in ("copy", "narrow", "warm"):
        (folder / name).mkdir()
        found = json.loads((folder / "x/profile.json").read_text())
        if name != "copy":
            found["deployment"] = name
        if name == "narrow":
            found["cost"] = {
                kind: [row for row in rows if row["batch"] == 1] for kind, rows in found["cost"].items()
            }
        warm = records.replace('"temperature": 0.0', '"temperature": 1.0')
        (folder / name / "records.jsonl").write_text(warm if name == "warm" else records)
        (folder / name / "profile.json").write_text(json.dumps(found))
    try:
        status, output = drafthouse("plan", "spec.yaml", "--prompt-tokens", "40", "--output-tokens", "20")
    finally:
        for name in ("copy", "narrow", "warm"):
            shutil.rmtree(folder / name)
    assert status == 0, output
    assert "left out: the profile of copy: runs/profile/copy/profile.json is a copy of that of x" in output
    assert "left out: the profile of warm: it has no records of temperature 0, only of 1" in output
    assert "left out at a concurrency of 2: narrow, profiled for other loads" in output
    compared = {
        cell.concurrency: {each.candidate.deployment for each in cell.candidates}
        for cell in load_plan(Path("runs/plan/x/plan.json")).cells
    }
    assert compared == {1: {None, "x", "narrow"}, 2: {None, "x"}}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--context", "225"], "--context 225 is too long: with engine.max_sequence_length 256"),
        (["--batch", "3"], "--batch 3 is more than the 2 requests that engine.max_batch_size takes"),
        (["--rounds", "-1"], "--rounds"),
        (["--count", "0"], "--count"),
    ],
)
def test_a_profile_of_nothing_is_refused(options: list[str], told: str) -> None:
    status, output = drafthouse("profile", "spec.yaml", "--prompts", "prompts.jsonl", *options)
    assert status == 2 and told in " ".join(output.split())


def test_a_profile_beside_it_is_compared_if_it_is_of_the_same_target(place: Path) -> None:
    for name, precision in (("y", "int8"), ("z", "fp32")):
        other = place / "runs/profile" / name
        other.mkdir()
        found = json.loads((place / "runs/profile/x/profile.json").read_text())
        found["deployment"], found["fingerprint"]["precision"] = name, precision
        (other / "profile.json").write_text(json.dumps(found))
        (other / "records.jsonl").write_text((place / "runs/profile/x/records.jsonl").read_text())
    try:
        status, output = drafthouse("plan", "spec.yaml", "--prompt-tokens", "40", "--output-tokens", "20")
    finally:
        for path in [*place.glob("runs/profile/[yz]/*"), *place.glob("runs/profile/[yz]")]:
            path.rmdir() if path.is_dir() else path.unlink()
    assert status == 0, output
    assert "left out: the profile of z: precision was fp32, is int8" in output
    assert set(load_plan(Path("runs/plan/x/plan.json")).deployments) == {"x", "y"}


def test_without_what_serving_adds_a_plan_says_that_it_is_of_the_engine_alone(place: Path) -> None:
    load = ["--concurrency", "1,2", "--prompt-tokens", "40", "--output-tokens", "20"]
    rates = []
    path = place / "runs/profile/x/profile.json"
    kept = path.read_text()
    try:
        for serving in (True, False):
            found = json.loads(kept)
            path.write_text(json.dumps(found if serving else {**found, "serving": []}))
            status, output = drafthouse("plan", "spec.yaml", *load)
            assert status == 0 and ("of the engine alone" in output) != serving
            cells = json.loads(output.splitlines()[-1])["cells"]
            rates.append([cell["candidates"][0]["tokens_per_second"]["value"] for cell in cells])
        elsewhere = [{**load, "prompt_tokens": 3990, "output_tokens": 20} for load in found["serving"]]
        path.write_text(json.dumps({**found, "serving": elsewhere}))
        status, output = drafthouse("plan", "spec.yaml", *load)
        assert status == 0 and "of the engine alone" in " ".join(output.split())
        assert "drafthouse profile with --context 4000 measures both" in " ".join(output.split())
    finally:
        path.write_text(kept)
    # A step of a model this small takes much less than what Triton adds to it.
    assert all(served < alone / 2 for served, alone in zip(*rates, strict=True))


def test_predictions_are_held_against_a_load_test(tmp_path: Path) -> None:
    sweep = SweepSettings(
        arms=(Arm(name="none", num_draft_tokens=0), Arm(name="two", num_draft_tokens=2)),
        prompts=Path("prompts.jsonl").absolute(),
        concurrency=(1, 2),
        requests=4,
        rounds=2,
        max_tokens=16,
    )
    directory = simulate_sweep(tmp_path / "report", sweep)
    known = Deployment(name="x", spec="s", weights="w")
    directory.note_servers(
        [Server(arm=arm.name, host="here", deployment=known, cache="off", salts=False) for arm in sweep.arms]
    )
    fixed = yaml.safe_load(Path("spec.yaml").read_text())
    fixed["speculation"]["adaptive"] = False
    Path("fixed.yaml").write_text(yaml.safe_dump(fixed))
    status, output = drafthouse("plan", "fixed.yaml", "--check", str(tmp_path / "report"))
    assert status == 0, output
    found = json.loads(output.splitlines()[-1])
    assert [(cell["load"], cell["arm"], cell["candidate"]["draft_length"]) for cell in found["cells"]] == [
        ("c1", "none", 0),
        ("c1", "two", 2),
        ("c2", "none", 0),
        ("c2", "two", 2),
    ]
    assert found["verdict"]["cells"] == 4 and set(found["verdict"]["choices"]) == {"c1", "c2"}
    status, output = drafthouse(
        "plan", "fixed.yaml", "--check", str(tmp_path / "report"), "--concurrency", "1"
    )
    assert status == 2 and "--check takes the load from the load test" in " ".join(output.split())
    status, output = drafthouse("plan", "fixed.yaml", "--check", str(tmp_path / "nothing"))
    assert status == 2 and "Traceback" not in output
