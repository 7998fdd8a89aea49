"""Arguments of the LLM API: each method's YAML against the line's schema, and every trap that the lines differ in."""

import json

import pytest
import yaml

from build.triton.llmapi import as_yaml
from build.trtllm.llm_api import schema as llm_schema
from build.trtllm.llm_api.arguments import (
    KIT_KEY,
    draft_length_schedule,
    llm_arguments,
    speculative_config,
)
from build.trtllm.llm_api.schema import SCHEMAS, schema_path, validate
from build.trtllm.releases import LINE_A, LINE_B, LINES
from build.trtllm.resolved import Supported
from build.trtllm.support.matrix import SUPPORT_MATRIX, resolve
from deployments.findings import UnsupportedDeployment
from deployments.spec import SpecError
from tests.build.trtllm.specs import deployment

LLM_API_METHODS = [
    (line, method)
    for (line, runtime), row in SUPPORT_MATRIX.items()
    for method, entry in row.items()
    if runtime == "llm_api" and isinstance(entry, Supported)
]


def _arguments(method, line, speculation=None, **engine):
    return llm_arguments(resolve(deployment(method, line, "llm_api", speculation, **engine)))


@pytest.mark.parametrize(("line", "method"), LLM_API_METHODS)
def test_the_yaml_of_a_method_is_valid_for_its_line_after_writing_and_reading(line, method):
    document = yaml.safe_load(as_yaml(_arguments(method, line)))
    assert document["model"] == "models/target"
    block = document.pop(KIT_KEY, None)
    assert (block is not None) == (method == "anpd")
    assert ("speculative_config" in document) == (method not in ("none", "anpd"))
    validate(document, LINES[line])


@pytest.mark.parametrize(("line", "method"), LLM_API_METHODS)
def test_the_other_lines_schema_refuses_what_is_spelled_differently(line, method):
    other = LINE_B if line == "A" else LINE_A
    document = {key: value for key, value in _arguments(method, line).items() if key == "speculative_config"}
    # Eagle and NGram are the spellings that both lines read; line B converts Eagle itself, MTP's old key as well.
    portable = method in ("none", "anpd", "prompt_lookup") or (method in ("eagle3", "mtp") and line == "A")
    if portable:
        validate(document, other)
    elif (line, method) != ("B", "mtp"):  # its max_draft_len is a key of line A too, which overwrites it
        with pytest.raises(SpecError, match="speculative_config"):
            validate(document, other)


EXACT = {
    ("A", "draft_model"): {
        "decoding_type": "DraftTarget", "max_draft_len": 5, "speculative_model_dir": "models/draft",
    },
    ("B", "draft_model"): {
        "decoding_type": "Draft_Target", "max_draft_len": 5, "speculative_model_dir": "models/draft",
    },
    ("A", "mtp"): {"decoding_type": "MTP", "num_nextn_predict_layers": 2, "allow_advanced_sampling": True},
    ("B", "mtp"): {"decoding_type": "MTP", "max_draft_len": 2},
    ("A", "eagle3"): {
        "decoding_type": "Eagle", "max_draft_len": 3,
        "speculative_model_dir": "runs/trtllm/example/eagle3-drafter",
        "eagle3_model_arch": "llama3", "allow_advanced_sampling": True,
    },
    ("B", "eagle3"): {
        "decoding_type": "Eagle3", "max_draft_len": 3, "speculative_model_dir": "models/eagle3",
        "eagle3_model_arch": "llama3",
    },
    ("A", "prompt_lookup"): {
        "decoding_type": "NGram", "max_draft_len": 5, "max_matching_ngram_size": 3, "is_keep_all": True,
        "is_use_oldest": True, "is_public_pool": True,
    },
    ("B", "suffix_automaton"): {
        "decoding_type": "SA", "max_draft_len": 5, "max_matching_ngram_size": -1, "enable_global_pool": False,
    },
    ("B", "pard"): {"decoding_type": "PARD", "max_draft_len": 4, "speculative_model_dir": "models/pard"},
    ("B", "dflash"): {"decoding_type": "DFlash", "max_draft_len": 8, "speculative_model_dir": "models/dflash"},
}  # fmt: skip


@pytest.mark.parametrize(("line", "method"), EXACT)
def test_speculative_config_word_for_word(line, method):
    assert speculative_config(resolve(deployment(method, line, "llm_api"))) == EXACT[line, method]


def test_eagle3_with_everything_on_line_b():
    config = _arguments(
        "eagle3",
        "B",
        {
            "dynamic_tree": {"top_k": 4, "total": 10},
            "layers_to_capture": [2, 16, 29],
            "suffix_automaton": {"threshold": 6},
            "max_concurrency": 8,
            "acceptance_gate": {"window": 500, "min_rate": 0.25},
        },
    )["speculative_config"]
    assert config["use_dynamic_tree"] is True
    assert (config["dynamic_tree_max_topK"], config["max_total_draft_tokens"]) == (4, 10)
    assert config["eagle3_layers_to_capture"] == [2, 16, 29]
    assert config["sa_config"] == {"threshold": 6, "enable_global_pool": False}
    assert config["max_concurrency"] == 8
    assert (config["acceptance_rate_window_size"], config["acceptance_rate_threshold"]) == (500, 0.25)


def test_line_a_gates_on_the_length_of_requests():
    config = _arguments("draft_model", "A", {"acceptance_gate": {"window": 50, "min_length": 1.3}})[
        "speculative_config"
    ]
    assert (config["acceptance_window"], config["acceptance_length_threshold"]) == (50, 1.3)


def _length_by_lower_bounds(schedule, batch):
    return schedule[max(key for key in schedule if key <= batch)]


def _length_by_upper_bounds(schedule, batch):
    return next((schedule[key] for key in sorted(schedule) if batch <= key), 0)


@pytest.mark.parametrize("schedule", [{4: 4, 8: 2, 32: 1}, {1: 5}, {1: 3, 2: 3, 64: 0}, {7: 2}])
def test_both_directions_of_a_schedule_say_the_same_at_every_batch_size(schedule):
    lower, upper = (draft_length_schedule(schedule, line) for line in (LINE_A, LINE_B))
    assert upper == schedule
    assert lower[1] == schedule[min(schedule)]
    for batch in range(1, 80):
        assert _length_by_lower_bounds(lower, batch) == _length_by_upper_bounds(upper, batch)
    assert any(  # the same keys read in the wrong direction are another schedule
        _length_by_lower_bounds({1: 0} | schedule, batch) != _length_by_upper_bounds(schedule, batch)
        for batch in range(1, 80)
    )


def test_schedules_stand_in_the_yaml_with_numbers_as_keys():
    speculation = {"draft_length_schedule": {4: 5, 8: 2}}
    text = as_yaml(_arguments("draft_model", "A", speculation))
    assert yaml.safe_load(text)["speculative_config"]["draft_len_schedule"] == {1: 5, 5: 2, 9: 0}
    text = as_yaml(_arguments("draft_model", "B", speculation))
    assert yaml.safe_load(text)["speculative_config"]["draft_len_schedule"] == {4: 5, 8: 2}


def test_overlap_is_off_where_drafts_are_made_on_the_host():
    off = {key for key in LLM_API_METHODS if _arguments(key[1], key[0]).get("disable_overlap_scheduler")}
    assert off == {
        ("A", "prompt_lookup"), ("A", "draft_model"), ("A", "anpd"), ("B", "prompt_lookup"), ("B", "anpd"),
    }  # fmt: skip


def test_anpd_is_a_block_of_the_kits_own():
    arguments = _arguments("anpd", "B", {"max_concurrency": 16})
    assert arguments[KIT_KEY] == {"drafter": "anpd", "draft_length": 7, "ngram": 5, "max_concurrency": 16}
    with pytest.raises(SpecError, match=KIT_KEY):
        validate(arguments, LINE_B)


def test_limits_and_parallelism_reach_the_file():
    arguments = _arguments(
        "none",
        "A",
        tensor_parallel=2,
        pipeline_parallel=2,
        max_batch_size=7,
        max_input_length=100,
        max_sequence_length=300,
        max_num_tokens=400,
        kv_cache={
            "dtype": "fp8",
            "host_memory_gib": 1.5,
            "free_gpu_memory_fraction": 0.5,
            "block_reuse": False,
        },
        guided_decoding="xgrammar",
    )
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 2)
    assert arguments["max_batch_size"] == arguments["cuda_graph_config"]["max_batch_size"] == 7
    assert (arguments["max_input_len"], arguments["max_seq_len"], arguments["max_num_tokens"]) == (
        100,
        300,
        400,
    )
    assert arguments["kv_cache_config"] == {
        "dtype": "fp8",
        "host_cache_size": 1610612736,
        "free_gpu_memory_fraction": 0.5,
        "enable_block_reuse": False,
    }
    assert arguments["guided_decoding_backend"] == "xgrammar"
    assert arguments["backend"] == "pytorch"
    assert "backend" not in _arguments("none", "B")


def test_more_arguments_are_merged_into_their_sections():
    more = {"kv_cache_config": {"tokens_per_block": 64}, "moe_expert_parallel_size": 2}
    arguments = _arguments("none", "B", llm_args=more)
    assert arguments["kv_cache_config"]["tokens_per_block"] == 64
    assert arguments["kv_cache_config"]["enable_block_reuse"] is True
    assert arguments["moe_expert_parallel_size"] == 2


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"max_batch_size": 8}, "engine.llm_args.max_batch_size"),
        ({"kv_cache_config": {"dtype": "fp8"}}, "engine.llm_args.kv_cache_config.dtype"),
        (
            {"speculative_config": {"decoding_type": "Eagle3"}},
            "engine.llm_args.speculative_config.decoding_type",
        ),
    ],
)
def test_what_the_kit_sets_is_not_set_twice(more, key):
    with pytest.raises(UnsupportedDeployment) as refusal:
        _arguments("eagle3", "B", llm_args=more)
    (finding,) = refusal.value.findings
    assert key in finding.reason and finding.remedy


def test_everything_that_is_wrong_with_the_arguments_is_told_at_once():
    more = {"max_batch_size": 8, "dtype": "x", "max_batchsize": 4, "guided_decoding_backend": "outlines"}
    with pytest.raises(UnsupportedDeployment) as refusal:
        _arguments("eagle3", "B", llm_args=more)
    told = [finding.reason for finding in refusal.value.findings]
    for part in (
        "max_batch_size: the kit sets it",
        "dtype: the kit",
        "did you mean max_batch_size?",
        "outlines",
    ):
        assert any(part in reason for reason in told), part


TRAPS = [
    (LINE_A, {"decoding_type": "Eagle3"}, "did you mean Eagle?"),
    (LINE_A, {"decoding_type": "Draft_Target"}, "did you mean DraftTarget?"),
    (LINE_A, {"decoding_type": "SA"}, "known: AUTO, DraftTarget, Eagle, MTP, NGram, SaveState"),
    (LINE_A, {"decoding_type": "Medusa"}, "known:"),
    (LINE_A, {"decoding_type": "Eagle", "acceptance_rate_threshold": 0.3}, "acceptance_length_threshold"),
    (LINE_A, {"decoding_type": "MTP", "sa_config": {"threshold": 4}}, "suffix automata came with 1.3"),
    (LINE_A, {"decoding_type": "NGram", "max_matching_ngram": 3}, "did you mean max_matching_ngram_size?"),
    (LINE_B, {"decoding_type": "DraftTarget"}, "did you mean Draft_Target?"),
    (LINE_B, {"decoding_type": "UserProvided"}, "did you mean User_Provided?"),
    (LINE_B, {"decoding_type": "eagle3"}, "did you mean Eagle3?"),
    (LINE_B, {"decoding_type": "Lookahead"}, "is not known"),
    (LINE_B, {"max_draft_len": 3}, "None is not known"),
    (LINE_B, {"decoding_type": "Eagle3", "eagle3_one_model": False}, "#17366"),
    (LINE_B, {"decoding_type": "MTP", "mtp_eagle_one_model": False}, "#17366"),
    (LINE_B, {"decoding_type": "Eagle3", "acceptance_window": 10}, "acceptance_rate_window_size"),
    (LINE_B, {"decoding_type": "Eagle3", "acceptance_length_threshold": 1.2}, "acceptance_rate_threshold"),
    (LINE_B, {"decoding_type": "Eagle3", "use_sa_spec": True}, "sa_config"),
    (LINE_B, {"decoding_type": "Eagle3", "max_batch_size": 4}, "max_concurrency"),
    (LINE_B, {"decoding_type": "Eagle3", "spec_dec_variant": 3}, "undocumented"),
    (LINE_B, {"decoding_type": "Eagle3", "eagle_choices": [[0]]}, "use_dynamic_tree"),
    (LINE_B, {"decoding_type": "NGram", "max_matching_ngram_size": 0}, "0"),
    (LINE_B, {"decoding_type": "Eagle3", "max_concurrency": 0}, "0"),
    (LINE_B, {"decoding_type": "Eagle3", "acceptance_rate_threshold": 1.5}, "1.5"),
    (LINE_B, {"decoding_type": "User_Provided", "drafter": "mine"}, "drafter"),
]


@pytest.mark.parametrize(("line", "config", "hint"), TRAPS)
def test_spelling_traps_of_speculative_config(line, config, hint):
    with pytest.raises(SpecError) as error:
        validate({"speculative_config": config}, line)
    assert "speculative_config" in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("line", "document", "hint"),
    [
        (LINE_A, {"max_batchsize": 4}, "did you mean max_batch_size?"),
        (LINE_A, {"kv_cache_config": {"pool_ratio": [1.0]}}, "kv_cache_config.pool_ratio: unknown key"),
        (LINE_A, {"per_request_spec_decode_stats": True}, "per_request_spec_decode_stats: unknown key"),
        (
            LINE_B,
            {"kv_cache_config": {"onboard_blocks": True}},
            "kv_cache_config.onboard_blocks: unknown key",
        ),
        (LINE_B, {"cuda_graph_config": {"batch_size": [1]}}, "did you mean batch_sizes?"),
        (LINE_B, {"guided_decoding_backend": "outlines"}, "outlines"),
        (LINE_B, {"tensor_parallel_size": "two"}, "two"),
    ],
)
def test_other_traps(line, document, hint):
    with pytest.raises(SpecError) as error:
        validate(document, line)
    assert hint in str(error.value)


def _installed(directory, monkeypatch, version):
    package = directory / f"tensorrt_llm-{version}.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\n")
    official = directory / llm_schema.OFFICIAL
    official.parent.mkdir(parents=True)
    official.write_text(json.dumps({"properties": {"new_key": {}}, "additionalProperties": False}))
    monkeypatch.syspath_prepend(str(directory))
    return official


def test_the_installed_release_brings_its_own_schema(tmp_path, monkeypatch):
    assert schema_path(LINE_B) == SCHEMAS / LINE_B.schema
    official = _installed(tmp_path, monkeypatch, "1.4.0rc1")
    assert schema_path(LINE_B) == official
    assert schema_path(LINE_A) == SCHEMAS / LINE_A.schema
    validate({"new_key": 1}, LINE_B)
    with pytest.raises(SpecError, match="speculative_config: unknown key"):
        validate({"speculative_config": {"decoding_type": "Eagle3"}}, LINE_B)
    with pytest.raises(SpecError, match="model: unknown key"):
        validate({"model": "x"}, LINE_B)


def test_schemas_name_their_source_and_tell_each_other_apart():
    for line in LINES.values():
        schema = json.loads((SCHEMAS / line.schema).read_text(encoding="utf-8"))
        assert line.pinned in schema["$comment"]
