"""The table of methods, lines and runtimes: every entry resolves or is refused with a reason and a way out."""

import re
from typing import Any, get_args

import pytest

from build.trtllm.llm_api.arguments import llm_arguments, speculative_config
from build.trtllm.releases import LINE_A, LINE_B, LINES
from build.trtllm.resolved import Supported
from build.trtllm.support.constraints import constraint_findings
from build.trtllm.support.matrix import SUPPORT_MATRIX, resolve
from build.trtllm.support.policies import BY_LENGTH, BY_RATE
from deployments.findings import Unsupported, UnsupportedDeployment
from deployments.speculation import AnySpeculation
from tests.build.trtllm.specs import SPECULATION, deployment

METHODS = [get_args(section)[1].tag for section in get_args(get_args(AnySpeculation)[0])]
PLACES = [(line, runtime, method) for (line, runtime), row in SUPPORT_MATRIX.items() for method in row]

# The table of what exists, as stated by the documentation of the two lines.
EXPECTED = {
    ("A", "engines"): {
        "none", "draft_model", "medusa", "eagle", "redrafter", "lookahead", "anpd", "prompt_lookup", "windowed",
    },
    ("A", "llm_api"): {"none", "draft_model", "eagle3", "prompt_lookup", "anpd", "mtp"},
    ("B", "llm_api"): {
        "none", "draft_model", "eagle3", "prompt_lookup", "suffix_automaton", "anpd", "mtp", "pard", "dflash",
    },
}  # fmt: skip


def test_every_method_of_the_spec_has_an_entry_in_every_row():
    assert set(METHODS) == set(SPECULATION)
    for row in SUPPORT_MATRIX.values():
        assert set(row) == set(METHODS)


def test_the_table_is_the_documented_one():
    for key, row in SUPPORT_MATRIX.items():
        assert {method for method, entry in row.items() if isinstance(entry, Supported)} == EXPECTED[key]


@pytest.mark.parametrize(("line", "runtime", "method"), PLACES)
def test_a_place_resolves_to_itself_or_is_refused(line, runtime, method):
    entry: Any = SUPPORT_MATRIX[line, runtime][method]
    spec = deployment(method, line, runtime)
    if isinstance(entry, Supported):
        resolved = resolve(spec)
        assert (resolved.line.name, resolved.runtime, resolved.support) == (line, runtime, entry)
        assert (resolved.draft_engine is not None) == (entry.drafting == "draft_engine")
        return
    with pytest.raises(UnsupportedDeployment) as refusal:
        resolve(spec)
    (finding,) = refusal.value.findings
    assert method in finding.reason
    assert entry.reason in str(refusal.value)
    assert entry.remedy in str(refusal.value)


@pytest.mark.parametrize(
    ("line", "runtime", "method", "remedy"),
    [
        (*key, method, entry.remedy)
        for key, row in SUPPORT_MATRIX.items()
        for method, entry in row.items()
        if isinstance(entry, Unsupported)
    ],
)
def test_what_a_refusal_offers_works(line, runtime, method, remedy):
    for offer in re.split(r",? or (?=[a-z]+:)|; or ", remedy):
        if offer.startswith("engine.kind: "):
            continue  # another engine
        changes = dict(re.findall(r"\b(line|runtime|method): (\w+)", offer))
        assert changes, offer
        for name in re.findall(r"method: (\w+ or \w+)", offer) or [changes.get("method", method)]:
            for one in name.split(" or "):
                there = changes.get("line", line)
                runtimes = [changes["runtime"]] if "runtime" in changes else LINES[there].runtimes
                assert any(
                    isinstance(SUPPORT_MATRIX[there, chosen][one], Supported) for chosen in runtimes
                ), offer


def test_engines_are_preferred_where_a_method_has_them():
    assert resolve(deployment("draft_model", "A")).runtime == "engines"
    assert resolve(deployment("eagle3", "A")).runtime == "llm_api"
    assert resolve(deployment("draft_model", "B")).runtime == "llm_api"


def test_line_b_has_no_engines_for_any_method():
    for method in METHODS:
        with pytest.raises(UnsupportedDeployment, match=r"removed in 1\.3\.0rc21") as refusal:
            resolve(deployment(method, "B", "engines"))
        assert "line: A" in refusal.value.findings[0].remedy


def test_mlp_speculator_says_what_it_can_become():
    for line in "AB":
        with pytest.raises(UnsupportedDeployment) as refusal:
            resolve(deployment("mlp_speculator", line))
        (finding,) = refusal.value.findings
        assert re.search("method: (redrafter|eagle3)", finding.remedy)
        assert "train" in finding.remedy


def test_modes_are_those_of_trtllm_build_and_the_triton_backend():
    modes = {
        entry.build_mode for entry in SUPPORT_MATRIX["A", "engines"].values() if isinstance(entry, Supported)
    }
    assert modes - {None} == {
        "draft_tokens_external", "lookahead_decoding", "medusa", "explicit_draft_tokens", "eagle",
    }  # fmt: skip
    decoding = {
        entry.decoding_mode
        for entry in SUPPORT_MATRIX["A", "engines"].values()
        if isinstance(entry, Supported)
    }
    assert decoding - {None} == {"medusa", "redrafter", "lookahead", "eagle"}


CHUNKED = {"tensorrt_llm": {"enable_chunked_context": "true"}}
GATE_A = {"acceptance_gate": {"window": 100, "min_length": 1.5}}
GATE_B = {"acceptance_gate": {"window": 1000, "min_rate": 0.3}}
SCHEDULE = {"draft_length_schedule": {4: 5, 8: 2}}


@pytest.mark.parametrize(
    ("method", "line", "runtime", "speculation", "engine", "reason", "remedy"),
    [
        ("eagle", "A", None, {}, {"pipeline_parallel": 2}, "pipeline", "tensor_parallel: 2"),
        ("redrafter", "A", None, {}, {"pipeline_parallel": 2}, "pipeline", "pipeline_parallel: 1"),
        ("draft_model", "A", "llm_api", {}, {"draft": {"tensor_parallel": 2}}, "11838", "runtime: engines"),
        ("draft_model", "B", None, {}, {"draft": {"tensor_parallel": 2}}, "11838", "no engine.draft"),
        ("medusa", "A", None, {}, {"draft": {"quantization": "fp8"}}, "second engine", "no engine.draft"),
        ("eagle3", "B", None, {}, {"quantization": "fp8"}, "as it is", "Model Optimizer"),
        ("eagle3", "A", None, {}, {"quantization": "int4_awq"}, "as it is", "quantization: none"),
        ("eagle", "A", None, {}, {"quantization": "int4_awq"}, "EAGLE engines", "quantization: none"),
        ("redrafter", "A", None, {}, {"quantization": "int4_awq"}, "int4_awq", "quantization: fp8"),
        ("medusa", "A", None, {"choices": [[0], [1, 0]]}, {}, "leads there", "choices with [1]"),
        ("medusa", "A", None, {"choices": [[0], [0, 0]], "num_heads": 1}, {}, "heads see no", "num_heads: 2"),
        ("eagle", "A", None, {"choices": [[0], [0, 0]]}, {}, "exactly the same", "depth: 2"),
        ("none", "A", None, {}, {"build_flags": {"paged_kv_cache": "enable"}}, "kv_cache_type: paged", "no paged_kv"),
        ("none", "A", None, {}, {"build_flags": {"streamingllm": "enable"}}, "refuses it", "no streamingllm"),
        ("none", "A", None, {}, {"build_flags": {"max_seqlen": "9"}}, "did you mean --max_seq_len?", "no max_seqlen"),
        ("none", "A", None, {}, {"build_flags": {"max_seq_len": "9"}}, "max_sequence_length", "no max_seq_len"),
        ("none", "A", None, {}, {"build_flags": {"gemm_plugin": "int8"}}, "takes auto", "no gemm_plugin"),
        ("none", "A", None, {}, {"build_flags": {"fast_build": "yes"}}, "takes no value", "no fast_build"),
        ("none", "A", None, {}, {"build_flags": {"opt_num_tokens": ""}}, "needs a value", "no opt_num_tokens"),
        ("none", "A", None, {}, {"kv_cache": {"dtype": "fp8"}}, "calibration", "quantization: fp8"),
        ("draft_model", "A", None, {}, {"kv_cache": {"block_reuse": False}}, "block_reuse", "block_reuse: true"),
        ("anpd", "A", None, {}, {"kv_cache": {"block_reuse": False}}, "block_reuse", "block_reuse: true"),
        ("anpd", "A", None, {}, {"max_num_tokens": 8191}, "prompt and output so far", "max_num_tokens: 8192"),
        ("draft_model", "A", None, {}, {"max_num_tokens": 4096}, "and tensorrt_llm_draft can take", "chunked_context"),
        ("prompt_lookup", "A", None, {}, {"max_num_tokens": 4096}, "tensorrt_llm can take", "for tensorrt_llm"),
        (
            "windowed", "A", None, {}, {"max_num_tokens": 4096, "triton_parameters": CHUNKED},
            "chunked context tensorrt_llm_draft can", "tensorrt_llm and tensorrt_llm_draft",
        ),
        ("draft_model", "A", None, {"max_concurrency": 4}, {}, "every batch size", "runtime: llm_api"),
        ("medusa", "A", None, {"max_concurrency": 4}, {}, "every batch size", "no max_concurrency"),
        ("eagle3", "A", None, {"draft_length_schedule": {4: 3}}, {}, "no effect", "eagle3_one_model: false"),
        ("eagle3", "A", None, {"max_concurrency": 4}, {}, "no effect", "no max_concurrency, line: B"),
        ("eagle3", "A", None, GATE_A, {}, "no effect", "no acceptance_gate"),
        ("mtp", "A", None, {"max_concurrency": 4}, {}, "no effect", "mtp_eagle_one_model: false"),
        ("mtp", "A", None, GATE_A, {}, "no effect", "mtp_eagle_one_model: false"),
        (
            "mtp", "A", None, {}, {"llm_args": {"speculative_config": {"draft_len_schedule": {1: 2}}}}, "no effect",
            "no draft_length_schedule",
        ),
        *(
            (method, line, None, {"draft_policy": "measured"}, {}, "does not weigh drafts", "engine.kind: embedded")
            for method, line in (("medusa", "A"), ("anpd", "A"), ("eagle3", "B"))
        ),
        ("prompt_lookup", "B", None, {"draft_length_schedule": {4: 5}}, {}, "smallest ones", "suffix_automaton"),
        ("prompt_lookup", "B", None, GATE_B, {}, "no effect", "suffix_automaton"),
        ("suffix_automaton", "B", None, {"texts": "t.jsonl"}, {}, "the embedded engine's", "no texts"),
        ("anpd", "B", None, {"draft_length_schedule": {4: 7}}, {}, "one's own", "max_concurrency"),
        ("anpd", "B", None, GATE_B, {}, "acceptance_gate", "max_concurrency"),
        ("draft_model", "A", "llm_api", GATE_B, {}, "min_length", "requests"),
        ("eagle3", "B", None, GATE_A, {}, "min_rate", "iterations"),
        ("draft_model", "B", None, {"use_draft_logits": True}, {}, "draft logits", "use_draft_logits: false"),
        ("eagle3", "A", None, {"dynamic_tree": {}}, {}, "12062", "line: B"),
        ("mtp", "A", None, {"suffix_automaton": {}}, {}, "1.3", "line: B"),
        *(
            (
                method, "B", None, {"suffix_automaton": {"chain_length": 9}}, {},
                "suffix_automaton.chain_length is the embedded", "no chain_length",
            )
            for method in ("eagle3", "mtp", "pard")
        ),
        ("medusa", "A", None, {"suffix_automaton": {}}, {}, "beside medusa", "no suffix_automaton"),
        ("draft_model", "B", None, {"suffix_automaton": {}}, {}, "beside draft_model", "no suffix_automaton"),
        ("windowed", "A", None, {"sink_tokens": 4}, {}, "StreamingLLM", "sink_tokens: 0"),
        ("windowed", "A", None, {"min_context": 2048}, {}, "min_context is the embedded", "no min_context"),
        ("windowed", "A", None, {"choice": "verified"}, {}, "choice is the embedded", "no choice"),
        ("windowed", "A", None, {"lookup": 3}, {}, "lookup is the embedded", "no lookup"),
        ("suffix_automaton", "B", None, {"global_pool": True, "global_pool_size": 8}, {}, "max_batch_size", "64"),
        ("none", "A", "engines", {}, {"llm_args": {"print_iter_log": True}}, "llm_args", "build_flags"),
        ("eagle3", "A", None, {}, {"build_flags": {"workers": "2"}}, "builds nothing", "llm_args"),
        ("medusa", "A", None, {}, {"build_flags": {"max_beam_width": "4"}}, "beams", "max_beam_width: 1"),
        ("eagle3", "B", None, {}, {"llm_args": {"max_beam_width": 4}}, "beams", "max_beam_width: 1"),
        ("anpd", "B", None, {}, {"llm_args": {"speculative_config": {}}}, "anpd", "speculation"),
        ("mtp", "A", None, {}, {"llm_args": {"speculative_config": ["MTP"]}}, "not keys with values", "speculation"),
        (
            "prompt_lookup", "B", None, {}, {"llm_args": {"speculative_config": {"use_rejection_sampling": True}}},
            "probabilities", "use_rejection_sampling: false",
        ),
    ],
)  # fmt: skip
def test_limits(method, line, runtime, speculation, engine, reason, remedy):
    with pytest.raises(UnsupportedDeployment) as refusal:
        resolve(deployment(method, line, runtime, speculation, **engine))
    assert any(reason in found.reason and remedy in found.remedy for found in refusal.value.findings)


def test_all_that_a_deployment_cannot_have_is_told_at_once():
    engine = {
        "quantization": "int4_awq",
        "pipeline_parallel": 2,
        "build_flags": {"paged_kv_cache": "enable", "max_beam_width": "4"},
        "draft": {"quantization": "fp8"},
        "llm_args": {"print_iter_log": True},
    }
    with pytest.raises(UnsupportedDeployment) as refusal:
        resolve(deployment("redrafter", "A", None, {"max_concurrency": 4}, **engine))
    told = [finding.reason for finding in refusal.value.findings]
    parts = (
        *("no pipeline parallelism", "is for a second engine", "int4_awq", "every batch size"),
        *("engine.llm_args is for the LLM API", "no method speculates on beams", "paged_kv_cache"),
    )
    assert len(told) == len(parts)
    for part in parts:
        assert any(part in reason for reason in told), part
        assert str(refusal.value).count("nearest that works") == len(parts)


@pytest.mark.parametrize(
    ("method", "line", "runtime", "speculation", "engine"),
    [
        ("medusa", "A", None, {}, {"quantization": "fp8", "kv_cache": {"dtype": "fp8"}}),
        ("none", "A", None, {}, {"build_flags": {"fast_build": "", "gemm_plugin": "fp8"}}),
        ("medusa", "A", None, {}, {"pipeline_parallel": 2}),
        ("redrafter", "A", None, {}, {"quantization": "fp8"}),
        ("draft_model", "A", "engines", {}, {"tensor_parallel": 4, "draft": {"tensor_parallel": 1}}),
        (
            "draft_model",
            "A",
            "llm_api",
            SCHEDULE | GATE_A,
            {"tensor_parallel": 4, "draft": {"tensor_parallel": 4}},
        ),
        ("eagle3", "B", None, {"dynamic_tree": {}, "suffix_automaton": {}} | GATE_B, {}),
        ("windowed", "A", None, {"sink_tokens": 0}, {}),
        ("anpd", "A", None, {}, {"max_num_tokens": 4096, "triton_parameters": CHUNKED}),
        ("medusa", "A", None, {}, {"max_num_tokens": 4096}),
        ("anpd", "A", "llm_api", {}, {"max_num_tokens": 4096}),
        ("anpd", "B", None, {"max_concurrency": 8}, {}),
        ("anpd", "A", "llm_api", {"max_concurrency": 8}, {}),
        ("prompt_lookup", "A", "llm_api", {"draft_length_schedule": {4: 5, 8: 1}} | GATE_A, {}),
        ("prompt_lookup", "B", None, {"max_concurrency": 8}, {}),
        ("suffix_automaton", "B", None, SCHEDULE | GATE_B, {}),
        ("mtp", "B", None, {"draft_length_schedule": {4: 2}} | GATE_B, {}),
        (
            "eagle3",
            "A",
            None,
            {"max_concurrency": 4} | GATE_A,
            {"llm_args": {"speculative_config": {"eagle3_one_model": False}}},
        ),
        ("none", "A", "engines", {}, {"build_flags": {"max_beam_width": "4"}}),
        ("eagle3", "B", None, {}, {"llm_args": {"speculative_config": {"use_rejection_sampling": True}}}),
    ],
)
def test_what_lies_within_the_limits(method, line, runtime, speculation, engine):
    resolved = resolve(deployment(method, line, runtime, speculation, **engine))
    assert list(constraint_findings(resolved)) == []
    assert resolved.line in (LINE_A, LINE_B)


@pytest.mark.parametrize(
    ("image", "speculation", "keys"),
    [
        ("nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc27", {"min_rate": 0.3}, BY_RATE.keys),
        ("nvcr.io/nvidia/tensorrt-llm/release:1.4.0rc1", {"min_rate": 0.3}, BY_RATE.keys),
        ("our/triton:1.3.0", {"min_rate": 0.3}, BY_RATE.keys),
        ("our/triton:latest", {"min_rate": 0.3}, BY_RATE.keys),
        ("nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc26", None, None),
    ],
)
def test_the_gate_is_spelt_as_the_candidate_has_it(image, speculation, keys):
    gate = {"acceptance_gate": {"window": 100, **(speculation or {"min_rate": 0.3})}}
    spec = deployment("eagle3", "B", None, gate, images={"build": image})
    if keys is None:
        with pytest.raises(
            UnsupportedDeployment,
            match=r"line B before 1\.3\.0rc27 watches drafters beside the target's model",
        ):
            resolve(spec)
        return
    config = speculative_config(resolve(spec))
    assert config is not None and {*BY_LENGTH.keys, *BY_RATE.keys} & set(config) == set(keys)


def test_before_it_n_grams_have_the_gate_by_length():
    gate = {"acceptance_gate": {"window": 100, "min_length": 1.5}}
    image = {"triton": "our/triton:1.3.0rc22"}
    arguments = llm_arguments(resolve(deployment("prompt_lookup", "B", None, gate, images=image)))
    assert arguments["speculative_config"]["acceptance_window"] == 100
    assert arguments["speculative_config"]["acceptance_length_threshold"] == 1.5
