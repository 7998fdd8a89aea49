"""The deployment spec: what it accepts, and what it says about mistakes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.engines import EmbeddedEngine, TensorRtLlmEngine
from deployments.spec import DeploymentSpec, SpecError, load_spec

_LEAST = {"name": "a", "target": {"model": "m"}}
_EXAMPLES = sorted(Path(__file__).parents[2].glob("deployments/*.yaml"))


def _load(folder: Path, **sections: Any) -> DeploymentSpec:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(_LEAST | sections), encoding="utf-8")
    return load_spec(path)


@pytest.mark.parametrize("path", _EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_valid_and_survive_json(path: Path) -> None:
    spec = load_spec(path)
    assert DeploymentSpec.model_validate_json(spec.model_dump_json()) == spec


def test_the_embedded_engine_without_speculation_is_the_default(tmp_path: Path) -> None:
    spec = _load(tmp_path)
    assert isinstance(spec.engine, EmbeddedEngine)
    assert spec.speculation.method == "none"
    with pytest.raises(SpecError, match="needs TensorRT-LLM"):
        _ = spec.tensorrt_llm


def test_kind_chooses_the_engine(tmp_path: Path) -> None:
    spec = _load(tmp_path, engine={"kind": "tensorrt_llm", "line": "A"})
    assert isinstance(spec.engine, TensorRtLlmEngine)
    with pytest.raises(SpecError, match="needs the embedded engine"):
        _ = spec.embedded


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"engine": {"presicion": "int8"}}, "engine.presicion: unknown key, did you mean precision"),
        (
            {"engine": {"kind": "tensorrt_lm"}},
            "engine.kind: 'tensorrt_lm' is not known, did you mean tensorrt_llm",
        ),
        (
            {"engine": {"kind": "tensorrt_llm", "kv_cache": {"dtipe": 1}}},
            "engine.kv_cache.dtipe: unknown key, did you mean dtype",
        ),
        (
            {"speculation": {"method": "eagle33"}},
            "speculation.method: 'eagle33' is not known, did you mean eagle3",
        ),
        ({"speculation": {"method": "medusa"}}, "speculation.checkpoint: Field required"),
        ({"speculation": {"method": "anpd", "draft_length": 99}}, "speculation.draft_length: .*31"),
        (
            {"speculation": {"method": "anpd", "max_concurrency": 4, "draft_length_schedule": {4: 7}}},
            "not both",
        ),
        *(
            (
                {"speculation": {"method": "anpd", "draft_policy": "measured", **limit}},
                "measured decides itself how much is drafted; leave out max_concurrency and draft_length_schedule",
            )
            for limit in ({"max_concurrency": 4}, {"draft_length_schedule": {4: 7}})
        ),
        (
            {"speculation": {"draft_policy": "measured"}},
            "speculation.draft_policy: unknown key; without a method nothing is drafted",
        ),
        (
            {"speculation": {"plan": "p", "draft_policy": "measured"}},
            "speculation.draft_policy: unknown key; the plan decides",
        ),
        ({"speculation": {"method": "anpd", "draft_length_schedule": {4: 5}}}, "draft_length 7"),
        ({"speculation": {"method": "anpd", "draft_length_schedule": {}}}, "at least 1 item"),
        ({"speculation": {"method": "lookahead", "ngram": 1}}, "speculation.ngram: .*2"),
        ({"speculation": {"method": "low_bit", "rank": 8, "bits_per_weight": 6}}, "give one of them"),
        ({"speculation": {"method": "suffix_automaton", "ngram": 0}}, "1 to 64"),
        ({"speculation": {"method": "suffix_automaton", "global_pool_size": 9}}, "global_pool: true"),
        *(
            (
                {
                    "speculation": {
                        "method": method,
                        where: "c",
                        "suffix_automaton": {"chain_length": 4},
                        **more,
                    }
                },
                told,
            )
            for method, where, more, told in (
                ("eagle3", "checkpoint", {"draft_length": 5}, "chain_length 4 .* not less than the 5"),
                ("draft_model", "model", {}, "chain_length 4 .* not less than the 5"),
                ("eagle3", "checkpoint", {"dynamic_tree": {}}, "makes chains: give no dynamic_tree"),
                ("medusa", "checkpoint", {"choices": [[0]]}, "makes chains: give no choices"),
                ("mlp_speculator", "checkpoint", {"candidates": 2}, "candidates must be 1"),
                (
                    "eagle3",
                    "checkpoint",
                    {"draft_length_schedule": {1: 3}},
                    "the chain_length 4 and none more",
                ),
            )
        ),
        (
            {
                "speculation": {
                    "method": "eagle3",
                    "checkpoint": "c",
                    "dynamic_tree": {"top_k": 2, "total": 7},
                }
            },
            "3 to 6",
        ),
        (
            {"engine": {"kind": "tensorrt_llm", "max_sequence_length": 100}},
            "max_input_length 4096 must not exceed max_sequence_length 100",
        ),
        *(
            ({"training": {"epochs": epochs}}, "training.epochs: .*or two of them")
            for epochs in (0, "two", [1], [0, 2], [1, 2, 3])
        ),
        ({"sped": {}}, "sped: unknown key"),
        (
            {"engine": {"kind": "tensorrt_llm", "precision": "fp8"}},
            r"engine.precision: unknown key; TensorRT-LLM has quantization \(fp8 or int4_awq\), and dtype",
        ),
        (
            {"engine": {"kind": "tensorrt_llm", "dtype": "fp8"}},
            "engine.dtype: .*given: 'fp8'.*, did you mean quantization: fp8",
        ),
        (
            {"engine": {"kind": "tensorrt_llm", "quantization": "bfloat16"}},
            "engine.quantization: .*did you mean dtype: bfloat16",
        ),
        (
            {"engine": {"quantization": "fp8"}},
            "engine.quantization: unknown key; the embedded engine has precision",
        ),
    ],
)
def test_mistakes_are_named_with_what_would_be_right(
    tmp_path: Path, sections: dict[str, Any], told: str
) -> None:
    with pytest.raises(SpecError, match=told):
        _load(tmp_path, **sections)


@pytest.mark.parametrize("path", _EXAMPLES, ids=lambda path: path.name)
def test_training_an_example_leaves_the_shipped_weights_alone(path: Path) -> None:
    spec = load_spec(path)
    drafter = getattr(spec.speculation, "checkpoint", None) or getattr(spec.speculation, "model", None)
    if drafter is not None and drafter.is_relative_to("speculators"):
        assert spec.training.checkpoint == Path("runs/checkpoints", spec.name)


@pytest.mark.parametrize(
    "value",
    [
        *(
            "2024-01-01",
            "2024-01-01T00:00:00Z",
            "!!binary aGVsbG8=",
            "!!set {a, b}",
            "{2024-01-01: 1}",
            "[[2024-01-01]]",
        ),
        "&a [*a]",
        "{"
        + ", ".join(f"y{n}: &b{n + 1} [{'1' if n == 0 else ', '.join([f'*b{n}'] * 9)}]" for n in range(30))
        + "}",
    ],
)
@pytest.mark.parametrize("key", ["kind: tensorrt_llm, llm_args", "kind: vllm, arguments"])
def test_what_is_handed_on_is_what_json_can_say(key: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(
        f"{{name: a, target: {{model: m}}, engine: {{{key}: {{x: {value}}}}}}}"
    )
    with pytest.raises(SpecError, match=key.split()[-1]) as refusal:
        load_spec(tmp_path / "spec.yaml")
    assert len(str(refusal.value)) < 2000


def test_what_json_can_say_is_handed_on_as_it_is(tmp_path: Path) -> None:
    given = {"a": {1: [True, None, 2.5, "x"], "b": {}}, "c": {"draft_len_schedule": {4: 3, 8: 0}}}
    spec = _load(tmp_path, engine={"kind": "tensorrt_llm", "line": "B", "llm_args": given})
    assert spec.tensorrt_llm.llm_args == given
