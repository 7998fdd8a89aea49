"""The bench for CUDA devices, at toy sizes and on a CPU where there is none."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engine.torch_attention import StepAttention  # noqa: E402
from engine.torch_graphs import best_device  # noqa: E402
from planner.bench.cuda import check  # noqa: E402
from planner.bench.cuda.__main__ import main  # noqa: E402
from planner.bench.cuda.decoder import Decoder  # noqa: E402
from planner.bench.cuda.run import ACCEPTANCES, RESULTS, Bench, Speedup  # noqa: E402
from planner.bench.cuda.shapes import REAL, TOY, Workload  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run at toy sizes has written."""
    directory = tmp_path_factory.mktemp("cuda") / "new"
    assert main(["--into", str(directory), "--toy"]) == 0
    found: dict[str, Any] = json.loads((directory / RESULTS).read_text())
    return found


def test_every_step_is_measured_in_every_round(facts: dict[str, Any]) -> None:
    grid = [
        (batch, rows, context, False)
        for context in TOY.contexts
        for batch in TOY.batches
        for rows in TOY.rows
    ]
    regime = TOY.regime
    grid += [(regime.batch, rows, regime.context, False) for rows in TOY.rows]
    grid.append((regime.batch, 1, regime.window, True))
    found = [tuple(step[name] for name in ("batch", "rows", "context", "window")) for step in facts["steps"]]
    assert sorted(found) == sorted(grid)
    assert facts["left_out"] == []
    for step in facts["steps"]:
        assert {len(step[name]) for name in ("device_ms", "wall_ms", "copy_gb_s")} == {TOY.rounds}
        assert min(step["device_ms"]) > 0 and min(step["copy_gb_s"]) > 0


def test_the_bound_is_weights_and_cache_at_the_speed_of_copying(facts: dict[str, Any]) -> None:
    shape = TOY.models[0]
    decoder = Decoder(shape, 4, torch.device("cpu"), torch.float32)
    weights = sum(values.numel() for name, values in decoder.weights.items() if name != "embedding")
    weights += 2 * shape.layers * shape.hidden  # norms, which here are one for all
    cached = decoder.caches.rows[:, :, 0].numel()
    for step in facts["steps"]:
        size = 2 if facts["environment"]["dtype"] == "bfloat16" else 4
        read = weights + step["batch"] * (step["context"] + step["rows"]) * cached
        assert step["read_bytes"] == read * size
        seconds = step["read_bytes"] / (statistics.median(step["copy_gb_s"]) * 1e9)
        assert step["bound_ms"] == pytest.approx(seconds * 1e3)
        assert step["of_bound"] == pytest.approx(step["bound_ms"] / statistics.median(step["device_ms"]))


def test_the_gain_of_windows_follows_from_the_steps(facts: dict[str, Any]) -> None:
    regime = TOY.regime
    walls = {
        (step["rows"], step["window"]): statistics.median(step["wall_ms"])
        for step in facts["steps"]
        if step["context"] == regime.context or step["window"]
    }
    assert [each["draft"] for each in facts["regime"]] == [rows - 1 for rows in TOY.rows if rows > 1]
    for each in facts["regime"]:
        spent = each["draft"] * walls[1, True] + walls[each["draft"] + 1, False]
        for acceptance in ACCEPTANCES:
            tokens = (1 - acceptance ** (each["draft"] + 1)) / (1 - acceptance)
            assert each["speedup"][str(acceptance)] == pytest.approx(tokens * walls[1, False] / spent)


def test_drafts_that_are_free_and_always_right_gain_as_much_as_they_are_long() -> None:
    assert Speedup(3, plain_ms=10, draft_ms=0, verify_ms=10).of(1.0) == 4
    assert Speedup(3, plain_ms=10, draft_ms=1, verify_ms=12).of(0.0) == pytest.approx(10 / 15)


def test_all_checks_are_kept_and_attention_that_is_wrong_on_purpose_is_caught(facts: dict[str, Any]) -> None:
    assert all(each["passed"] for each in facts["checks"])
    assert [each["error"] > each["tolerance"] for each in facts["checks"]].count(True) == 1
    assert [each["control"] for each in facts["checks"]].count(True) == 1


@pytest.mark.parametrize("fault", ["scale", "sliding_window", "past", "begins", "tables", "places"])
def test_wrong_attention_is_caught(fault: str) -> None:
    class Wrong(StepAttention):
        def __init__(self, caches: Any, inputs: Any, groups: int) -> None:
            if f"0.{fault}" in inputs:
                wrong = inputs[f"0.{fault}"].roll(1, -1) if fault == "tables" else inputs[f"0.{fault}"] + 1
                inputs = {**inputs, f"0.{fault}": wrong}
            elif fault in inputs:
                inputs = {**inputs, fault: inputs[fault].roll(1)}
            super().__init__(caches, inputs, groups, kernel=False)

        def __call__(self, attributes: Any, new: Any, name: str) -> Any:
            if fault in attributes:
                attributes = {**attributes, fault: attributes[fault] * 2}
            return super().__call__(attributes, new, name)

    found = list(check.checks(best_device(), torch.bfloat16, Wrong))
    assert not all(each.passed for each in found if not each.control)


def bench(workload: Workload, directory: Path) -> Bench:
    return Bench(workload, directory, best_device(), started=time.monotonic(), report=lambda line: None)


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    found = bench(replace(TOY, seconds=-1.0), tmp_path).run()
    assert found.steps == [] and found.speedups == []
    left = json.loads((tmp_path / RESULTS).read_text())["left_out"]
    assert len(left) == 1 + len(TOY.batches) * len(TOY.contexts)
    assert {each["for_want_of"] for each in left} == {"time"}


def test_what_there_is_no_memory_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The regime's requests share blocks then."""
    monkeypatch.setattr(Bench, "_blocks", lambda self, model: 10)
    found = bench(TOY, tmp_path).run()
    assert [(each["context"], each["batch"], each["for_want_of"]) for each in found.left_out] == [
        (200, 2, "memory")
    ]
    assert {step.blocks_shared for step in found.steps if step.batch == 2 and step.context == 256} == {True}
    grid = [step for step in found.steps if step.context in TOY.contexts and not step.window]
    assert {step.blocks_shared for step in grid} == {False}


def test_nothing_is_measured_where_a_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "TOLERANCES", dict.fromkeys(check.TOLERANCES, 1e-12))
    assert main(["--into", str(tmp_path), "--toy"]) == 1
    assert "failed: chains, 8 x 4 heads of 64" in capsys.readouterr().out
    found = json.loads((tmp_path / RESULTS).read_text())
    assert found["steps"] == [] and len(found["checks"]) > 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_only_toy_sizes_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--into", str(tmp_path / "new")]) == 2
    assert "no CUDA device; --toy runs anywhere" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    assert main(["--into", str(tmp_path / "file"), "--toy"]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_the_shapes_are_those_of_real_models() -> None:
    """Parameters as their authors state them, without the embedding where it is not the head too."""
    weights = {model.name: model.weights / 1e9 for model in REAL.models}
    assert weights == {"1B": pytest.approx(1.236, abs=0.001), "8B": pytest.approx(7.505, abs=0.001),
                       "13B": pytest.approx(12.852, abs=0.001)}  # fmt: skip
    assert {model.name: model.cached * 2 for model in REAL.models} == {
        "1B": 32_768,
        "8B": 131_072,
        "13B": 819_200,
    }


def test_results_of_an_earlier_run_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / RESULTS).write_text("figures of a GPU")
    assert main(["--into", str(tmp_path), "--toy"]) == 2
    assert "is of an earlier run, and is kept" in capsys.readouterr().err
    assert (tmp_path / RESULTS).read_text() == "figures of a GPU"
