"""The memory estimate: its arithmetic by hand, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from build.trtllm.checks import memory
from build.trtllm.checks.memory import GIB, MemoryEstimate, estimate, memory_findings
from build.trtllm.support.matrix import resolve
from tests.build.trtllm.checkpoints import checkpoint
from tests.build.trtllm.specs import deployment

_INNER, _EMBEDDINGS = 3 * 100 * 16, 2 * 40 * 16


def estimates(
    tmp_path: Path, method: str = "none", gpu: float | None = None, config: dict[str, Any] | None = None,
    speculation: dict[str, Any] | None = None, **engine: Any,
) -> tuple[MemoryEstimate, ...]:  # fmt: skip
    model = tmp_path / "target"
    if not model.exists():
        checkpoint(model, **(config or {}))
    spec = deployment(method, model=model, speculation=speculation, **{"runtime": "engines", **engine})
    return estimate(resolve(spec), gpu)


@pytest.mark.parametrize(
    ("engine", "weights"),
    [
        ({}, (_INNER + _EMBEDDINGS) * 2),
        ({"quantization": "fp8"}, _INNER + _EMBEDDINGS * 2),
        ({"quantization": "int4_awq"}, _INNER * (0.5 + 2 / 128) + _EMBEDDINGS * 2),
        ({"tensor_parallel": 2}, (_INNER + _EMBEDDINGS)),
        ({"tensor_parallel": 2, "pipeline_parallel": 3}, (_INNER + _EMBEDDINGS) / 3),
    ],
)
def test_weights_by_quantisation_and_parallelism(
    engine: dict[str, Any], weights: float, tmp_path: Path
) -> None:
    (found,) = estimates(tmp_path, **engine)
    assert found.residents[0].weights == pytest.approx(weights)


@pytest.mark.parametrize(
    ("engine", "config", "kv_token"),
    [
        ({}, {}, 2 * 3 * 2 * 4 * 2),
        ({"quantization": "fp8", "kv_cache": {"dtype": "fp8"}}, {}, 2 * 3 * 2 * 4),
        ({"tensor_parallel": 2}, {}, 2 * 3 * 1 * 4 * 2),
        ({"tensor_parallel": 4}, {}, 2 * 3 * 1 * 4 * 2),  # two KV heads on four GPUs: each has a copy
        ({"pipeline_parallel": 3}, {}, 2 * 1 * 2 * 4 * 2),
        ({}, {"head_dim": 8}, 2 * 3 * 2 * 8 * 2),
        ({}, {"kv_lora_rank": 12, "qk_rope_head_dim": 4}, 3 * (12 + 4) * 2),
    ],
)
def test_kv_cache_of_a_token(
    engine: dict[str, Any], config: dict[str, Any], kv_token: int, tmp_path: Path
) -> None:
    (found,) = estimates(tmp_path, config=config, **engine)
    assert found.residents[0].kv_token == kv_token
    assert found.request == kv_token * 8192


def test_a_draft_model_is_held_beside_the_target(tmp_path: Path) -> None:
    draft = checkpoint(tmp_path / "draft", num_hidden_layers=1)
    (found,) = estimates(tmp_path, "draft_model", speculation={"model": draft})
    target, second = found.residents
    assert second.weights == (100 * 16 + _EMBEDDINGS) * 2
    assert second.kv_token == target.kv_token / 3
    assert found.fixed == target.weights + second.weights + found.workspace


def test_a_second_engine_is_not_pipelined(tmp_path: Path) -> None:
    draft = checkpoint(tmp_path / "draft")
    (found,) = estimates(tmp_path, "draft_model", speculation={"model": draft}, pipeline_parallel=3)
    target, second = found.residents
    assert second.weights == pytest.approx(3 * target.weights)
    assert second.kv_token == 3 * target.kv_token


def test_a_draft_on_a_gpu_of_its_own_is_counted_there(tmp_path: Path) -> None:
    draft = checkpoint(tmp_path / "draft")
    apart = estimates(tmp_path, "draft_model", speculation={"model": draft}, draft={"gpu_device_ids": [1]})
    assert [[resident.name for resident in item.residents] for item in apart] == [["target"], ["draft"]]
    together = estimates(tmp_path, "draft_model", speculation={"model": draft}, draft={"gpu_device_ids": [0]})
    assert len(together) == 1


def test_windowed_self_drafting_loads_the_target_twice_with_a_short_cache(tmp_path: Path) -> None:
    (found,) = estimates(tmp_path, "windowed", speculation={"window": 512})
    target, draft = found.residents
    assert draft.weights == target.weights
    assert (target.kv_tokens, draft.kv_tokens) == (8192, 512)


def test_drafted_rows_count_in_the_workspace(tmp_path: Path) -> None:
    (plain,), (lookahead,) = estimates(tmp_path), estimates(tmp_path, "lookahead")
    assert lookahead.workspace - plain.workspace == 64 * 83 * 40 * 4


def test_the_arithmetic_is_shown_and_the_verdict_follows_it(tmp_path: Path) -> None:
    (found,) = estimates(tmp_path, gpu=24)
    assert found.cache == pytest.approx((24 * GIB - found.fixed) * 0.9)
    told = found.arithmetic()
    assert "2 x 3 layers x 2 KV heads x 4 x 2 B = 96 B a token" in told
    assert "0.01e9 parameters" in told or "0.00e9 parameters" in told
    assert f"{found.cache / found.request:.1f} requests of full length, of 64" in told  # type: ignore[operator]


def findings(tmp_path: Path, **engine: Any) -> list[Any]:
    spec = deployment("none", model=tmp_path / "target", runtime="engines", **engine)
    return list(memory_findings(resolve(spec)))


def test_what_does_not_fit_is_an_error_with_the_arithmetic(tmp_path: Path) -> None:
    checkpoint(tmp_path / "target")
    (fits,) = findings(tmp_path, gpu_memory_gib=2)
    assert (fits.name, fits.severity) == ("gpu-memory", "note")
    (found,) = findings(tmp_path, gpu_memory_gib=1.5)
    assert (found.name, found.severity) == ("gpu-memory", "error")
    assert "a GPU of 1.50 GiB cannot hold target and the KV cache" in found.reason
    assert "target weights:" in found.reason and "quantise" in found.remedy


def test_a_checkpoint_without_weights_is_told(tmp_path: Path) -> None:
    (checkpoint(tmp_path / "target") / "model.safetensors").unlink()
    (found,) = findings(tmp_path, gpu_memory_gib=2)
    assert (found.name, found.severity) == ("gpu-memory-unknown", "note")


def test_heads_in_pytorch_files_count_by_size(tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    (heads / "config.json").write_text('{"medusa_num_heads": 4}')
    (heads / "medusa_lm_head.pt").write_bytes(bytes(5000))
    (found,) = estimates(tmp_path, "medusa", speculation={"checkpoint": heads})
    assert (found.residents[1].weights, found.residents[1].kv_token) == (5000, 0)


def test_without_its_drafter_a_deployment_is_estimated_all_the_same(tmp_path: Path) -> None:
    checkpoint(tmp_path / "target")
    spec = deployment(
        "draft_model", model=tmp_path / "target", speculation={"model": tmp_path / "draft"}, gpu_memory_gib=24
    )
    (found,) = memory_findings(resolve(spec))
    assert (found.name, found.severity) == ("gpu-memory", "note")
    assert "target weights:" in found.reason and "draft weights:" not in found.reason
    assert f"(without the drafter: {tmp_path / 'draft' / 'config.json'} is missing" in found.reason


def test_a_model_without_kv_cache_is_estimated(tmp_path: Path) -> None:
    (found,) = estimates(tmp_path, gpu=24, config={"num_attention_heads": None, "num_key_value_heads": None})
    assert found.request == 0
    assert found.arithmetic().endswith(" GiB")


@pytest.mark.parametrize(
    "entry",
    [{"shape": [3, 4]}, {"dtype": "F16"}, {"dtype": "F16", "shape": 7}, {"dtype": "F16", "shape": ["a"]}],
)
def test_a_damaged_header_is_told(entry: dict[str, Any], tmp_path: Path) -> None:
    header = json.dumps({"layer": {**entry, "data_offsets": [0, 2]}}).encode()
    target = checkpoint(tmp_path / "target")
    (target / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    (found,) = memory_findings(resolve(deployment(model=target)))
    assert found.name == "gpu-memory-unknown" and "layer has no type or shape" in found.reason


@pytest.mark.parametrize("program", ["#!/bin/sh\nexec sleep 5\n", "no program"])
def test_a_driver_that_does_not_answer_leaves_the_memory_unknown(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(program)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(memory, "_SECONDS", 0.2)
    assert memory.smallest_gpu_gib() is None
