"""Each check finds what it is for, by name, and is silent about a sound deployment."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from build.plan.steps import Step
from build.trtllm.checks.commands import command_findings
from build.trtllm.checks.existing import engine_findings, repository_findings
from build.trtllm.checks.models import model_findings
from build.trtllm.checks.settings import setting_findings
from build.trtllm.checks.spelling import spelling_findings
from build.trtllm.resolved import Resolved
from build.trtllm.support.matrix import resolve
from deployments.findings import Finding
from tests.build.trtllm.checkpoints import checkpoint, write_tokenizer
from tests.build.trtllm.specs import SPECULATION, deployment


def named(findings: Iterable[Finding]) -> dict[str, str]:
    """Severity by name."""
    return {finding.name: finding.severity for finding in findings}


def resolved(method: str = "none", line: str = "A", runtime: str | None = None, **sections: Any) -> Resolved:
    return resolve(deployment(method, line, runtime, **sections))


ROOM = {"max_num_tokens": 65536}


@pytest.mark.parametrize(
    "method", sorted(set(SPECULATION) - {"mlp_speculator", "peagle", "token_recycling", "low_bit", "plan"})
)
def test_sound_settings_have_no_findings(method: str) -> None:
    line = "B" if method in ("suffix_automaton", "pard", "dflash") else "A"
    assert named(setting_findings(resolved(method, line, **ROOM))) == {}


_GUIDED = {"guided_decoding": "xgrammar", "max_batch_size": 8}


@pytest.mark.parametrize(
    ("method", "line", "speculation", "engine", "name", "severity"),
    [
        ("eagle3", "B", {"draft_length_schedule": {4: 3, 8: 0}}, _GUIDED, "schedule-reaches-zero", "error"),
        ("eagle3", "B", {"draft_length_schedule": {4: 3}}, _GUIDED, "schedule-reaches-zero", "error"),
        ("eagle3", "B", {"max_concurrency": 4}, _GUIDED, "schedule-reaches-zero", "error"),
        ("mtp", "B", {"draft_length": 2}, _GUIDED, "guided-decoding-with-mtp", "warning"),
        ("lookahead", "A", {}, {"max_num_tokens": 80, "max_input_length": 80}, "draft-exceeds-step", "error"),
        ("eagle3", "A", {}, {"max_batch_size": 2049 - 1, "max_num_tokens": 4096}, "step-smaller-than-batch", "warning"),
        ("none", "A", {}, {"max_num_tokens": 4095}, "prompt-exceeds-step", "error"),
        ("none", "A", {}, {"tensor_parallel": 2, "launch": {"gpu_device_ids": [0]}}, "gpu-device-ids", "error"),
        ("draft_model", "A", {}, {"draft": {"gpu_device_ids": [0, 1]}}, "gpu-device-ids", "error"),
        (
            *("draft_model", "A", {}, {"tensor_parallel": 2, "draft": {"tensor_parallel": 1}}),
            *("draft-tensor-parallel", "error"),
        ),
        (
            *("none", "A", {}, {"images": {"triton": "nvcr.io/nvidia/tritonserver:26.09-trtllm-python-py3"}}),
            *("image-of-unknown-release", "warning"),
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(
    method: str, line: str, speculation: dict[str, Any], engine: dict[str, Any], name: str, severity: str
) -> None:
    found = named(setting_findings(resolved(method, line, speculation=speculation, **{**ROOM, **engine})))
    (full,) = found
    assert full.startswith(name) and found[full] == severity


@pytest.mark.parametrize(
    ("method", "line", "speculation"),
    [
        ("eagle3", "B", {"draft_length_schedule": {4: 3, 8: 1}}),
        ("draft_model", "A", {"max_concurrency": 4}),  # line A has no schedule behind it
        ("eagle3", "B", {}),
    ],
)
def test_guided_decoding_with_drafts_at_every_batch_size_is_sound(
    method: str, line: str, speculation: dict[str, Any]
) -> None:
    known = resolved(method, line, "llm_api", speculation=speculation, **_GUIDED)
    assert named(setting_findings(known)) == {}


def test_orchestrator_mode_takes_a_draft_of_other_parallelism() -> None:
    engine = {"tensor_parallel": 2, "draft": {"tensor_parallel": 1}, "launch": {"mode": "orchestrator"}}
    assert named(setting_findings(resolved("draft_model", **engine))) == {}


@pytest.mark.parametrize(
    ("line", "config", "name", "told"),
    [
        ("A", {"decoding_type": "Eagle3"}, "wrong-spelling-for-the-line", "spelt for line B"),
        ("B", {"decoding_type": "DraftTarget"}, "wrong-spelling-for-the-line", "spelt for line A"),
        ("B", {"acceptance_window": 8}, "key-of-another-line", "acceptance_window is not in line B"),
        ("B", {"eagle3_one_model": False}, "key-of-another-line", "eagle3_one_model is not in line B"),
        ("A", {"acceptance_rate_threshold": 0.5}, "key-of-another-line", "is not in line A"),
    ],
)
def test_the_other_line_s_spelling_is_named(line: str, config: dict[str, Any], name: str, told: str) -> None:
    (found,) = spelling_findings(resolved("eagle3", line, llm_args={"speculative_config": config}))
    assert (found.name, found.severity) == (name, "error")
    assert told in found.reason


@pytest.mark.parametrize(
    ("line", "spelling"), [("A", "Eagle"), ("B", "Eagle3"), ("A", "NGram"), ("B", "NGram")]
)
def test_the_line_s_own_spelling_is_not(line: str, spelling: str) -> None:
    arguments = {"speculative_config": {"decoding_type": spelling, "allow_advanced": True}}
    assert list(spelling_findings(resolved("eagle3", line, llm_args=arguments))) == []


def build_step(known: Resolved, *flags: str) -> Step:
    output = str(known.target_engine)
    return Step("build-target", ("trtllm-build", *flags, "--output_dir", output), (), (known.target_engine,))


@pytest.mark.parametrize(
    ("method", "flags", "names"),
    [
        ("draft_model", ["--speculative_decoding_mode=draft_tokens_external", "--max_draft_len=5"], set()),
        ("draft_model", ["--speculative_decoding_mode", "draft_tokens_external", "--max_draft_len", "9"], set()),
        ("draft_model", ["--speculative_decoding_mode=draft_tokens_external"], {"target-without-draft-length"}),
        (
            *("draft_model", ["--speculative_decoding_mode=draft_tokens_external", "--max_draft_len=4"]),
            {"target-draft-length"},
        ),
        ("draft_model", ["--max_draft_len=5"], {"engine-of-another-method"}),
        ("lookahead", ["--speculative_decoding_mode=lookahead_decoding", "--max_draft_len=83"], set()),
        (
            *("lookahead", ["--speculative_decoding_mode=lookahead_decoding", "--max_draft_len=84"]),
            {"lookahead-formula"},
        ),
        ("medusa", ["--speculative_decoding_mode=medusa"], set()),
    ],
)  # fmt: skip
def test_commands_carry_the_draft_length(method: str, flags: list[str], names: set[str]) -> None:
    known = resolved(method, runtime="engines")
    found = named(command_findings(known, [build_step(known, *flags)]))
    assert found == dict.fromkeys(names, "error")


def test_the_formula_is_shown_with_its_numbers() -> None:
    known = resolved("lookahead", runtime="engines")
    step = build_step(known, "--speculative_decoding_mode=lookahead_decoding", "--max_draft_len=7")
    (found,) = command_findings(known, [step])
    assert "(7 - 2) + (7 - 1 + 7) x (7 - 1) = 83" in found.reason


def models(tmp_path: Path, method: str, **speculation: Any) -> dict[str, str]:
    spec = deployment(method, model=tmp_path / "target", speculation=speculation)
    return named(model_findings(resolve(spec)))


def test_models_of_one_family_have_no_findings(tmp_path: Path) -> None:
    checkpoint(tmp_path / "target")
    draft = checkpoint(tmp_path / "draft", num_hidden_layers=1)
    assert models(tmp_path, "draft_model", model=draft) == {}
    assert models(tmp_path, "eagle3", checkpoint=draft) == {}
    assert models(tmp_path, "windowed") == {}


def test_what_is_there_but_no_model_is_named(tmp_path: Path) -> None:
    checkpoint(tmp_path / "target")
    (tmp_path / "heads").mkdir()
    assert models(tmp_path, "eagle3", checkpoint=tmp_path / "heads") == {"model-unreadable": "error"}


@pytest.mark.parametrize("section", [["llama"], "llama"])
def test_what_is_said_of_a_language_model_has_keys(section: Any, tmp_path: Path) -> None:
    checkpoint(tmp_path / "target", text_config=section)
    assert models(tmp_path, "none") == {"model-unreadable": "error"}


def test_a_tokenizer_must_be_there_and_fit(tmp_path: Path) -> None:
    target = checkpoint(tmp_path / "target")
    write_tokenizer(target, {"a": 0, "added": 40})
    assert models(tmp_path, "none") == {"tokens-beyond-vocabulary": "error"}
    (target / "tokenizer.json").unlink()
    assert models(tmp_path, "none") == {"tokenizer-missing": "error"}


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "{}", '{"model": null}', '{"model": {"vocab": {}}, "added_tokens": [{}]}'),
        '{"model": {"vocab": {"a": 0, "": "1"}}}',
    ],
)
def test_a_damaged_tokenizer_hides_nothing_else(content: str, tmp_path: Path) -> None:
    draft = checkpoint(tmp_path / "draft", max_position_embeddings=2048)
    (checkpoint(tmp_path / "target") / "tokenizer.json").write_text(content)
    expected = {"tokenizer-unreadable": "error", "sequence-exceeds-positions": "warning"}
    assert models(tmp_path, "draft_model", model=draft) == expected


@pytest.mark.parametrize(
    ("tokens", "changes", "options", "expected"),
    [
        ({"b": 0, "a": 1, "c": 2}, {}, {}, {"vocabulary-mismatch": "error"}),
        ({"a": 0, "b": 1}, {}, {}, {"vocabulary-added-tokens": "warning"}),
        ({"a": 0, "b": 1, "c": 2}, {"vocab_size": 48}, {}, {"vocabulary-size": "warning"}),
        ({"a": 0, "b": 1, "c": 2}, {"vocab_size": 48}, {"use_draft_logits": True}, {"vocabulary-size": "error"}),
        ({"a": 0, "b": 1, "c": 2}, {"vocab_size": 2}, {}, {"vocabulary-size": "error"}),
        ({"a": 0, "b": 1}, {"vocab_size": 38}, {}, {"vocabulary-added-tokens": "warning", "vocabulary-size": "error"}),
        (None, {"max_position_embeddings": 2048}, {}, {"sequence-exceeds-positions": "warning"}),
    ],
)  # fmt: skip
def test_draft_and_target_share_a_vocabulary(
    tokens: dict[str, int] | None,
    changes: dict[str, Any],
    options: dict[str, Any],
    expected: dict[str, str],
    tmp_path: Path,
) -> None:
    checkpoint(tmp_path / "target", {"a": 0, "b": 1, "c": 2})
    draft = checkpoint(tmp_path / "draft", tokens or {"a": 0, "b": 1, "c": 2}, **changes)
    assert models(tmp_path, "draft_model", model=draft, **options) == expected


def test_a_head_of_another_target_is_recognised(tmp_path: Path) -> None:
    checkpoint(tmp_path / "target")
    head = checkpoint(tmp_path / "head", hidden_size=32, vocab_size=48)
    assert models(tmp_path, "eagle3", checkpoint=head) == {
        "drafter-of-another-target": "error",
        "vocabulary-size": "error",
    }


def test_a_target_is_not_longer_than_its_positions(tmp_path: Path) -> None:
    checkpoint(tmp_path / "target", max_position_embeddings=4096)
    assert models(tmp_path, "none") == {"sequence-exceeds-positions": "error"}


def engines(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    speculation: dict[str, Any] | None = None,
    **build: Any,
) -> dict[str, str]:
    """Findings about engines with this build configuration."""
    monkeypatch.chdir(tmp_path)
    known = resolved(method, runtime="engines", speculation=speculation)
    limits = {"max_batch_size": 64, "max_input_len": 4096, "max_seq_len": 8192, "max_num_tokens": 8192}
    known.target_engine.mkdir(parents=True)
    content = {"build_config": limits | build, "pretrained_config": {}}
    (known.target_engine / "config.json").write_text(json.dumps(content))
    if known.draft_engine is not None:
        known.draft_engine.mkdir()
        (known.draft_engine / "config.json").write_text(json.dumps(content))
    return named(engine_findings(known))


@pytest.mark.parametrize(
    ("method", "build", "expected"),
    [
        ("draft_model", {"speculative_decoding_mode": 2, "max_draft_len": 5, "max_seq_len": 8197}, {}),
        (
            *("draft_model", {"speculative_decoding_mode": 2, "max_draft_len": 5, "max_seq_len": 8196}),
            {"engine-without-room-for-drafts": "warning"},
        ),
        (
            *("draft_model", {"speculative_decoding_mode": 2, "max_draft_len": 0, "max_seq_len": 8197}),
            {"target-without-draft-length": "error"},
        ),
        (
            *("draft_model", {"speculative_decoding_mode": 1, "max_draft_len": 0, "max_seq_len": 8197}),
            {"engine-of-another-method": "error", "target-without-draft-length": "error"},
        ),
        ("lookahead", {"speculative_decoding_mode": 8, "max_draft_len": 83}, {}),
        ("lookahead", {"speculative_decoding_mode": 8, "max_draft_len": 40}, {"lookahead-formula": "error"}),
        ("medusa", {"speculative_decoding_mode": 4, "max_draft_len": 63}, {}),
        ("none", {"speculative_decoding_mode": 1, "max_batch_size": 8}, {"engine-limits": "error"}),
        ("none", {"speculative_decoding_mode": 1, "max_batch_size": 128}, {}),
    ],
)  # fmt: skip
def test_engines_that_are_there_fit_the_spec(
    method: str,
    build: dict[str, Any],
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert engines(tmp_path, monkeypatch, method, **build) == expected


def test_draft_logits_need_engines_that_give_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = {"speculative_decoding_mode": 2, "max_draft_len": 5, "max_seq_len": 8197}
    found = engines(tmp_path, monkeypatch, "draft_model", {"use_draft_logits": True}, **build)
    assert found == {"engine-without-logits": "error"}
    (folder := tmp_path / "built").mkdir()
    build["gather_generation_logits"] = True
    assert engines(folder, monkeypatch, "draft_model", {"use_draft_logits": True}, **build) == {}


@pytest.mark.parametrize("build", [[], {"max_draft_len": "5"}, {"max_draft_len": [5]}])
def test_an_engine_that_does_not_say_how_it_was_built_is_named(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = resolved("medusa", runtime="engines")
    known.target_engine.mkdir(parents=True)
    (known.target_engine / "config.json").write_text(json.dumps({"build_config": build}))
    assert named(engine_findings(known)) == {"engine-unreadable": "error"}


def test_a_missing_engine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named(engine_findings(resolved("draft_model", runtime="engines"))) == {"engine-missing": "error"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('parameters { key: "decoding_mode" value { string_value: "medusa" } }', {}),
        ("max_batch_size: ${triton_max_batch_size}", {"unfilled-template": "error"}),
        ('value { string_value: "0\\\\,1" }', {"escaped-value": "error"}),
    ],
)
def test_a_repository_is_filled_in(text: str, expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tensorrt_llm").mkdir()
    (tmp_path / "tensorrt_llm" / "config.pbtxt").write_text(text)
    assert named(repository_findings(tmp_path)) == expected


def test_a_configuration_in_no_known_encoding_is_looked_at_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "tensorrt_llm").mkdir()
    (tmp_path / "tensorrt_llm" / "config.pbtxt").write_bytes(b"# caf\xe9\nmax_batch_size: ${size}")
    assert named(repository_findings(tmp_path)) == {"unfilled-template": "error"}
