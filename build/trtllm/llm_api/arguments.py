"""Arguments of TensorRT-LLM's LLM API for a deployment, in the spelling of its release line.

They are what Triton's `llmapi` model and `trtllm-serve --extra_llm_api_options` read as YAML. A drafter that is a
Python object has no place in YAML: for ANPD the file has no `speculative_config` but a block of the kit's own under
the key `drafthouse`, which the kit's `llmapi` model takes out before the rest goes to `LLM()`, and builds a
user-provided drafter from.

Example::

    arguments = llm_arguments(resolve(spec))
    arguments["speculative_config"]   # {"decoding_type": "Eagle3", "max_draft_len": 3, …}
    print(as_yaml(arguments))
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from build.trtllm.llm_api.schema import validate
from build.trtllm.releases import Refused, ReleaseLine
from build.trtllm.resolved import Resolved
from build.trtllm.support.policies import BY_RATE, beside_the_target, gate_of
from deployments.spec import SpecError
from deployments.speculation import (
    Anpd,
    AnySpeculation,
    DFlash,
    DraftModel,
    Eagle3,
    Mtp,
    Pard,
    PromptLookup,
    SelfLookupEnhancer,
    Speculation,
    SuffixAutomaton,
)
from speculators.eagle3.config import Eagle3Config
from speculators.formats.config import CONFIG_FILE
from speculators.formats.errors import CheckpointError

KIT_KEY = "drafthouse"
"""Key of the kit's own block in the YAML; `LLM()` never sees it."""

# features/speculative-decoding.md: drafting on the host needs the last step's tokens before the next one starts.
# Line A's draft model is a second model on the host's schedule; line B's runs in one graph with the target.
_NO_OVERLAP = {
    "A": frozenset({"prompt_lookup", "draft_model", "anpd"}),
    "B": frozenset({"prompt_lookup", "anpd"}),
}

_GIB = 2**30


def llm_arguments(resolved: Resolved) -> dict[str, Any]:
    """Everything that the YAML says but Triton's own `triton_config`, validated for the release line.

    Raises:
        Refused: `engine.llm_args` repeats what another key of the spec sets.
        SpecError: `engine.llm_args` has a key or value that the line does not know.
    """
    arguments = _merged(_base(resolved), resolved.engine.llm_args, "engine.llm_args")
    keys = gate_of(resolved).keys
    validate(
        arguments,
        resolved.line,
        {} if resolved.line.name == "A" else dict(zip(BY_RATE.keys, keys, strict=True)),
    )
    if isinstance(resolved.speculation, Anpd):
        arguments[KIT_KEY] = _user_drafter(resolved.speculation)
    return arguments


def as_yaml(arguments: Mapping[str, Any]) -> str:
    """The arguments as the text of a YAML file."""
    return yaml.safe_dump(dict(arguments), sort_keys=False, allow_unicode=True)


def _base(resolved: Resolved) -> dict[str, Any]:
    engine, line = resolved.engine, resolved.line
    arguments: dict[str, Any] = {
        "model": str(resolved.spec.target.model),
        "dtype": engine.dtype,
        "tensor_parallel_size": engine.tensor_parallel,
        "pipeline_parallel_size": engine.pipeline_parallel,
        "max_batch_size": engine.max_batch_size,
        "max_input_len": engine.max_input_length,
        "max_seq_len": engine.max_sequence_length,
        "max_num_tokens": engine.max_num_tokens,
        "kv_cache_config": _kv_cache(resolved),
        "cuda_graph_config": {"max_batch_size": engine.max_batch_size, "enable_padding": True},
        "return_perf_metrics": True,
        "enable_iter_perf_stats": True,
    }
    if line.name == "A":  # line B has one backend, and calls the key deprecated
        arguments["backend"] = "pytorch"
    if resolved.method in _NO_OVERLAP[line.name]:
        arguments["disable_overlap_scheduler"] = True
    if engine.guided_decoding is not None:
        arguments["guided_decoding_backend"] = engine.guided_decoding
    speculative = speculative_config(resolved)
    if speculative is not None:
        arguments["speculative_config"] = speculative
    return arguments


def _kv_cache(resolved: Resolved) -> dict[str, Any]:
    cache = resolved.engine.kv_cache
    config: dict[str, Any] = {
        "enable_block_reuse": cache.block_reuse,
        "free_gpu_memory_fraction": cache.free_gpu_memory_fraction,
        "dtype": cache.dtype,
    }
    if cache.host_memory_gib is not None:
        config["host_cache_size"] = int(cache.host_memory_gib * _GIB)
    return config


def speculative_config(resolved: Resolved) -> dict[str, Any] | None:
    """The value of `speculative_config`; None for plain decoding and for drafters that YAML cannot say."""
    speculation, line = resolved.speculation, resolved.line
    decoding_type = line.decoding_types.get(speculation.method)
    if decoding_type is None or not isinstance(speculation, Speculation):
        return None
    config = {"decoding_type": decoding_type, **_method(speculation, line)}
    if resolved.converted_drafter is not None:
        config |= _converted(resolved, resolved.converted_drafter)
    if line.name == "A" and not beside_the_target(resolved):
        config["allow_advanced_sampling"] = True  # without it, requests that sample get the likeliest tokens
    if speculation.max_concurrency is not None:
        config["max_concurrency"] = speculation.max_concurrency
    if speculation.draft_length_schedule is not None:
        config["draft_len_schedule"] = draft_length_schedule(speculation.draft_length_schedule, line)
    if speculation.acceptance_gate is not None:
        gate = gate_of(resolved)
        window, threshold = gate.keys
        config |= {
            window: speculation.acceptance_gate.window,
            threshold: getattr(speculation.acceptance_gate, gate.field),
        }
    return config


def draft_length_schedule(schedule: Mapping[int, int], line: ReleaseLine) -> dict[int, int]:
    """A schedule by largest batch size of a bucket, in the direction of the line.

    Line B has it so itself. Line A wants the smallest batch size of each bucket, 1 among them, and keeps the last
    length for all larger batches, so one more bucket ends the drafting::

        {4: 4, 8: 2, 32: 1}   ->   {1: 4, 5: 2, 9: 1, 33: 0}
    """
    keys = sorted(schedule)
    if line.schedule_bound == "upper":
        return {key: schedule[key] for key in keys}
    lower = [1, *(key + 1 for key in keys)]
    return dict(zip(lower, [*(schedule[key] for key in keys), 0], strict=True))


def _method(speculation: AnySpeculation, line: ReleaseLine) -> dict[str, Any]:
    """What is the method's own in `speculative_config`."""
    if isinstance(speculation, Mtp):
        return {line.mtp_length_key: speculation.draft_length} | _enhancer(speculation.suffix_automaton)
    if isinstance(speculation, Eagle3):
        return _eagle3(speculation)
    if isinstance(speculation, DraftModel):
        return {"max_draft_len": speculation.draft_length, "speculative_model_dir": str(speculation.model)}
    if isinstance(speculation, PromptLookup):
        return {
            "max_draft_len": speculation.draft_length,
            "max_matching_ngram_size": speculation.ngram,
            "is_keep_all": speculation.keep_all,
            "is_use_oldest": speculation.use_oldest,
            "is_public_pool": speculation.public_pool,
        }
    if isinstance(speculation, SuffixAutomaton):
        return {
            "max_draft_len": speculation.draft_length,
            "max_matching_ngram_size": speculation.ngram,
            "enable_global_pool": speculation.global_pool,
        } | _given(global_pool_size=speculation.global_pool_size)
    assert isinstance(speculation, (Pard, DFlash))
    own: dict[str, Any] = {
        "max_draft_len": speculation.draft_length,
        "speculative_model_dir": str(speculation.model),
    }
    own |= _given(mask_token_id=speculation.mask_token_id)
    if isinstance(speculation, Pard):
        return own | _enhancer(speculation.suffix_automaton)
    return own | _given(target_layer_ids=_list(speculation.target_layer_ids))


def _eagle3(speculation: Eagle3) -> dict[str, Any]:
    config: dict[str, Any] = {
        "max_draft_len": speculation.draft_length,
        "speculative_model_dir": str(speculation.checkpoint),
        "eagle3_model_arch": speculation.architecture,
    }
    config |= _given(eagle3_layers_to_capture=_list(speculation.layers_to_capture))
    tree = speculation.dynamic_tree
    if tree is not None:
        config |= {"use_dynamic_tree": True, "dynamic_tree_max_topK": tree.top_k}
        config |= _given(max_total_draft_tokens=tree.total)
    return config | _enhancer(speculation.suffix_automaton)


def _converted(resolved: Resolved, directory: Path) -> dict[str, Any]:
    """Where the converted drafter lies, and the layers that it was trained on, which line A does not read from it.

    Raises:
        SpecError: its config.json is none of an EAGLE-3 drafter.
    """
    speculation = resolved.speculation
    assert isinstance(speculation, Eagle3)
    config = {"speculative_model_dir": str(directory)}
    source = next(
        (place for place in (directory, speculation.checkpoint) if (place / CONFIG_FILE).is_file()), None
    )
    if speculation.layers_to_capture is not None or source is None:
        return config
    try:
        return config | _given(eagle3_layers_to_capture=Eagle3Config.read(source).target_layers)
    except CheckpointError as error:
        raise SpecError(f"speculation.checkpoint: {error}") from None


def _enhancer(enhancer: SelfLookupEnhancer | None) -> dict[str, Any]:
    if enhancer is None:
        return {}
    return {"sa_config": {"threshold": enhancer.threshold, "enable_global_pool": enhancer.global_pool}}


def _user_drafter(speculation: Anpd) -> dict[str, Any]:
    block = {
        "drafter": speculation.method,
        "draft_length": speculation.draft_length,
        "ngram": speculation.ngram,
    }
    return block | _given(max_concurrency=speculation.max_concurrency)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _list(values: tuple[int, ...] | None) -> list[int] | None:
    return None if values is None else list(values)


def _merged(base: dict[str, Any], more: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The base with more keys; sections that both have are merged, anything else that both have is refused."""
    merged = dict(base)
    for key, value in more.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(merged[key], dict) and isinstance(value, Mapping):
            merged[key] = _merged(merged[key], value, f"{where}.{key}")
        else:
            raise Refused(
                f"{where}.{key}: the kit sets it to {merged[key]!r}, and releases differ in which of two wins",
                f"no {key} in {where}; the spec has a key of its own for it",
            )
    return merged
