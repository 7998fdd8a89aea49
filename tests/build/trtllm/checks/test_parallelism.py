"""Models that do not split over their GPUs are refused, with the numbers of GPUs that they do split over."""

from pathlib import Path
from typing import Any

import pytest

from build.trtllm.checks.parallelism import parallelism_findings
from build.trtllm.checks.preflight import preflight
from build.trtllm.support.matrix import unchecked
from tests.build.trtllm.checkpoints import checkpoint
from tests.build.trtllm.specs import deployment

# 12 heads of 2 groups, as the rule is easily wrong for: 2, 3, 4, 6 and 12 divide the heads.
CONFIG: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 48}


def told(
    tmp_path: Path, method: str = "none", config: Any = CONFIG, **sections: Any
) -> list[tuple[str, str]]:
    """What is wrong, and what would be right."""
    target = tmp_path / "target"
    if not target.exists():
        checkpoint(target, **config)
    resolved = unchecked(deployment(method, model=target, **sections))
    return [(found.reason, found.remedy) for found in parallelism_findings(resolved.spec, resolved.support)]


@pytest.mark.parametrize("ranks", [1, 2, 4, 6, 12])
@pytest.mark.parametrize("runtime", ["engines", "llm_api"])
def test_what_divides_the_heads_is_sound(ranks: int, runtime: str, tmp_path: Path) -> None:
    assert told(tmp_path, tensor_parallel=ranks, runtime=runtime) == []


@pytest.mark.parametrize(
    ("config", "ranks", "reason", "right"),
    [
        (CONFIG, 5, "12 attention heads and 2 key and value heads and 48 columns of its MLP", "1 or 2 or 4 or 6 or 12"),
        (CONFIG, 3, "2 key and value heads", "1 or 2 or 4 or 6 or 12"),  # neither split nor copied
        (CONFIG | {"intermediate_size": 54}, 4, "54 columns of its MLP", "1 or 2 or 6"),
        (
            {"num_attention_heads": 6, "num_key_value_heads": 6, "intermediate_size": 48},
            *(4, "6 attention heads and 6 key and value heads", "1 or 2 or 3 or 6"),
        ),
    ],
)  # fmt: skip
def test_what_does_not_is_refused_with_what_would(
    config: dict[str, Any], ranks: int, reason: str, right: str, tmp_path: Path
) -> None:
    (found,) = told(tmp_path, config=config, tensor_parallel=ranks)
    assert found == (
        f"engine.tensor_parallel {ranks} does not divide target.model: it has {reason}",
        f"tensor_parallel: {right}",
    )


def test_a_draft_engine_may_have_a_number_of_its_own(tmp_path: Path) -> None:
    draft = checkpoint(tmp_path / "draft", num_attention_heads=3, num_key_value_heads=1)
    sections: dict[str, Any] = {"speculation": {"model": draft}, "runtime": "engines", "tensor_parallel": 4}
    ((what, right),) = told(tmp_path, "draft_model", **sections)
    assert what.startswith("engine.tensor_parallel 4 does not divide speculation.model: it has 3 attention")
    assert right == "tensor_parallel: 1"
    assert told(tmp_path, "draft_model", draft={"tensor_parallel": 1}, **sections) == []
    ((what, right),) = told(tmp_path, "draft_model", draft={"tensor_parallel": 2}, **sections)
    assert what.startswith("engine.draft.tensor_parallel 2 does not divide speculation.model")
    assert right == "draft.tensor_parallel: 1"


def test_attention_that_every_gpu_has_whole_is_not_split(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"runtime": "llm_api", "tensor_parallel": 5}
    assert told(tmp_path, llm_args={"enable_attention_dp": True}, **sections) == []
    assert len(told(tmp_path, llm_args={"enable_attention_dp": False}, **sections)) == 1


def test_a_stage_of_the_pipeline_needs_a_layer(tmp_path: Path) -> None:
    assert told(tmp_path, pipeline_parallel=3) == []
    assert told(tmp_path, pipeline_parallel=4) == [
        (
            "engine.pipeline_parallel 4 is more than the 3 layers of target.model",
            "pipeline_parallel: 3 or less",
        )
    ]


def test_a_model_that_is_not_there_is_told_elsewhere(tmp_path: Path) -> None:
    spec = deployment("none", model=tmp_path / "none", tensor_parallel=3)
    assert list(parallelism_findings(spec)) == []


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    """Two refusals of the generators, a model that is missing, one that does not split, and the memory without it."""
    target = checkpoint(tmp_path / "target", **CONFIG)
    policies = {"max_concurrency": 4, "acceptance_gate": {"window": 4, "min_length": 1.2}}
    drafting = {"model": tmp_path / "drat", **policies}
    (tmp_path / "draft").mkdir()
    gpus = {"tensor_parallel": 5, "gpu_memory_gib": 1.5}
    spec = deployment("draft_model", "A", "engines", drafting, model=target, **gpus)
    found = preflight(spec).findings
    assert [finding.name for finding in found] == [
        *("not-in-this-line", "not-in-this-line", "model-missing", "tensor-parallel-heads", "gpu-memory")
    ]
    assert found[2].reason.endswith(f"did you mean {tmp_path / 'draft'}?")
    assert "(without the drafter:" in found[4].reason


def test_a_method_that_the_line_lacks_is_told_with_what_else_is_wrong(tmp_path: Path) -> None:
    target = checkpoint(tmp_path / "target", **CONFIG)
    spec = deployment(
        "medusa", "B", model=target, speculation={"checkpoint": tmp_path / "heads"}, tensor_parallel=5
    )
    assert [finding.name for finding in preflight(spec).findings] == [
        *("not-in-this-line", "model-missing", "tensor-parallel-heads")
    ]
