"""Random specs: those that resolve give only valid files and flags, all others are refused before a step exists."""

from typing import Any

import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from build.triton.llmapi import as_yaml
from build.trtllm.engines.commands import build_steps
from build.trtllm.llm_api.arguments import KIT_KEY, llm_arguments
from build.trtllm.llm_api.schema import validate
from build.trtllm.methods.table import converted_drafter, tree_of
from build.trtllm.methods.trees import depth, tree_findings
from build.trtllm.resolved import Supported
from build.trtllm.support.matrix import SUPPORT_MATRIX, resolve
from deployments.findings import UnsupportedDeployment
from tests.build.trtllm.engines.test_engine_commands import (
    assert_commands_are_those_of_the_tools,
    assert_steps_connect,
)
from tests.build.trtllm.specs import SPECULATION, deployment

MODELS = [f"models/{name}" for name in ("target", "draft", "heads", "eagle", "redrafter")]

SMALL = st.integers(1, 12)

OPTIONS: dict[str, dict[str, Any]] = {
    "anpd": {"draft_length": SMALL, "ngram": st.integers(2, 8)},
    "prompt_lookup": {
        "draft_length": SMALL,
        "ngram": SMALL,
        "keep_all": st.booleans(),
        "public_pool": st.booleans(),
    },
    "suffix_automaton": {
        "draft_length": SMALL,
        "ngram": st.integers(-1, 64),
        "global_pool": st.booleans(),
        "global_pool_size": st.none() | st.integers(1, 4096),
    },
    "draft_model": {
        "draft_length": SMALL,
        "use_draft_logits": st.booleans(),
        "suffix_automaton": st.none() | st.just({"threshold": 5}),
    },
    "medusa": {
        "num_heads": SMALL,
        "choices": st.none() | st.lists(st.lists(st.integers(0, 2), max_size=3), max_size=4),
    },
    "eagle": {
        "depth": st.integers(1, 16),
        "max_draft_tokens": st.integers(1, 256),
        "max_non_leaves": SMALL,
        "choices": st.none() | st.lists(st.lists(st.integers(0, 1), max_size=2), max_size=3),
    },
    "eagle3": {
        "draft_length": SMALL,
        "dynamic_tree": st.none()
        | st.fixed_dictionaries({"top_k": st.integers(1, 32), "total": st.none() | SMALL}),
        "layers_to_capture": st.none() | st.just([2, 16, 29]),
        "suffix_automaton": st.none() | st.sampled_from([{"threshold": 5}, {"chain_length": 31}]),
    },
    "redrafter": {"num_beams": SMALL, "draft_length": SMALL, "greedy_search": st.booleans()},
    "lookahead": {"window": SMALL, "ngram": SMALL, "verification_set": SMALL},
    "windowed": {"draft_length": SMALL, "sink_tokens": st.none() | st.integers(0, 4)},
    "mtp": {"draft_length": SMALL, "suffix_automaton": st.none() | st.just({"global_pool": True})},
    "pard": {"draft_length": SMALL, "mask_token_id": st.none() | SMALL},
    "dflash": {"draft_length": SMALL, "target_layer_ids": st.none() | st.just([1, 9])},
}

POLICIES = {
    "max_concurrency": st.none() | SMALL,
    "draft_length_schedule": st.none() | st.dictionaries(SMALL, st.integers(0, 12), max_size=3),
    "acceptance_gate": st.none()
    | st.just({"window": 100, "min_length": 1.5})
    | st.just({"window": 100, "min_rate": 0.2}),
}

ENGINE = {
    "dtype": st.sampled_from(["float16", "bfloat16"]),
    "quantization": st.sampled_from(["none", "none", "fp8", "int4_awq"]),
    "tensor_parallel": st.sampled_from([1, 2, 8]),
    "pipeline_parallel": st.sampled_from([1, 1, 2]),
    "max_batch_size": st.integers(1, 2048),
    "max_input_length": st.integers(1, 10000),
    "kv_cache": st.just({}) | st.fixed_dictionaries({"dtype": st.just("fp8"), "block_reuse": st.booleans()}),
    "draft": st.just({}) | st.fixed_dictionaries({"tensor_parallel": st.sampled_from([1, 2])}),
    "guided_decoding": st.sampled_from([None, "xgrammar"]),
    "build_flags": st.sampled_from(
        [{}, {}, {"fast_build": ""}, {"gemm_plugin": "fp8"}, {"paged_kv_cache": "enable"}]
    ),
    "llm_args": st.sampled_from([{}, {}, {"kv_cache_config": {"tokens_per_block": 64}}]),
}


@st.composite
def sections(draw):
    """Method, line, runtime, and some options of the speculation and the engine section; often impossible."""
    method = draw(st.sampled_from(sorted(set(SPECULATION) - {"plan"})))
    line, runtime = draw(st.sampled_from([("A", None), ("A", "engines"), ("A", "llm_api"), ("B", None)]))
    options = OPTIONS.get(method, {})
    speculation = {key: draw(value) for key, value in options.items() if draw(st.booleans())}
    if method != "none" and draw(st.integers(0, 3)) == 0:
        key = draw(st.sampled_from(sorted(POLICIES)))
        speculation[key] = draw(POLICIES[key])
    keys = draw(st.sets(st.sampled_from(sorted(ENGINE)), max_size=3))
    engine = {key: draw(ENGINE[key]) for key in sorted(keys)}
    return method, line, runtime, speculation, engine


def _assert_consistent(resolved, config):
    """What a release checks beyond its schema when it starts."""
    speculation = resolved.speculation
    length = config.get("max_draft_len", config.get("num_nextn_predict_layers"))
    assert length == speculation.draft_length > 0
    assert ("num_nextn_predict_layers" in config) == (resolved.method == "mtp" and resolved.line.name == "A")
    schedule = config.get("draft_len_schedule")
    if schedule is not None:
        assert "max_concurrency" not in config
        assert schedule[min(schedule)] == length == max(schedule.values())
        assert resolved.line.name == "B" or 1 in schedule
    if config.get("use_dynamic_tree"):
        total = config.get("max_total_draft_tokens", length)
        assert length <= total <= length * config["dynamic_tree_max_topK"]


@given(sections())
@settings(max_examples=400, deadline=None)
def test_random_specs(drawn):
    method, line, runtime, speculation, engine = drawn
    try:
        resolved = resolve(deployment(method, line, runtime, speculation, **engine))
        steps = build_steps(resolved)
    except (ValidationError, UnsupportedDeployment) as error:
        event(type(error).__name__)
        if isinstance(error, UnsupportedDeployment):
            assert error.findings and all(found.reason and found.remedy for found in error.findings)
        return
    event(f"{resolved.line.name} {resolved.runtime}")
    assert isinstance(SUPPORT_MATRIX[resolved.line.name, resolved.runtime][method], Supported)
    if resolved.runtime == "engines":
        assert steps
        assert_commands_are_those_of_the_tools(steps)
        assert_steps_connect(steps, MODELS)
        tree = tree_of(resolved)
        if tree is not None:
            assert list(tree_findings(tree, 256)) == []
            assert depth(tree) <= 16
        return
    assert [step.name for step in steps] == (["convert-eagle3"] if converted_drafter(resolved) else [])
    document = yaml.safe_load(as_yaml(llm_arguments(resolved)))
    assert (document.pop(KIT_KEY, None) is not None) == (method == "anpd")
    validate(document, resolved.line)
    if "speculative_config" in document:
        _assert_consistent(resolved, document["speculative_config"])


@given(sections(), st.sampled_from(["max_draft_leng", "decoding_type", "eagle3_one_modell", "drafter"]))
@settings(max_examples=60, deadline=None)
def test_a_wrong_key_never_survives(drawn, key):
    method, line, runtime, speculation, engine = drawn
    engine = engine | {"llm_args": {"speculative_config": {key: "Eagle3"}}}
    try:
        resolved = resolve(deployment(method, line, runtime, speculation, **engine))
        llm_arguments(resolved)
    except (ValidationError, ValueError):
        return
    raise AssertionError(f"{method} took {key}")
