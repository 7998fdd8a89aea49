"""Arguments of TensorRT-LLM's LLM API for a deployment, in the spelling of its release line.

They are what Triton's `llmapi` model and `trtllm-serve --extra_llm_api_options` read as YAML. A drafter that is a
Python object has no place in YAML: for ANPD the file has no `speculative_config` but a block of the kit's own under
the key `drafthouse`, which the kit's `llmapi` model takes out before the rest goes to `LLM()`, and builds a
user-provided drafter from.

Example::

    arguments = llm_arguments(resolve(spec))
    arguments["speculative_config"]   # {"decoding_type": "MTP", "max_draft_len": 1, …}
"""

from collections.abc import Iterator, Mapping
from typing import Any

from build.trtllm.llm_api.schema import schema_findings
from build.trtllm.methods.table import converted_drafter, method_of
from build.trtllm.releases import ReleaseLine, not_in_line
from build.trtllm.resolved import Resolved
from build.trtllm.support.policies import BY_RATE, beside_the_target, gate_of
from deployments.drafting import Speculation
from deployments.findings import Finding, require_none

KIT_KEY = "drafthouse"
"""Key of the kit's own block in the YAML; `LLM()` never sees it."""

_GIB = 2**30


def llm_arguments(resolved: Resolved) -> dict[str, Any]:
    """Everything that the YAML says but Triton's own `triton_config`, validated for the release line.

    Raises:
        UnsupportedDeployment: `engine.llm_args` repeats what another key of the spec sets, or has a key or value that
            the line does not know.
    """
    arguments, found = _assembled(resolved)
    require_none(found)
    user_drafter = method_of(resolved).llm_api.user_drafter
    if user_drafter is not None:
        arguments[KIT_KEY] = user_drafter(resolved.speculation)
    return arguments


def free_form_findings(resolved: Resolved) -> Iterator[Finding]:
    """What is wrong with `engine.llm_args`, whatever else is wrong with the deployment."""
    _, found = _assembled(resolved)
    rest = set(_schema_findings(_base(resolved), resolved))
    yield from (finding for finding in found if finding not in rest)


def _assembled(resolved: Resolved) -> tuple[dict[str, Any], list[Finding]]:
    """The arguments of `LLM()`, and what is wrong with them."""
    twice: list[Finding] = []
    arguments = _merged(_base(resolved), resolved.engine.llm_args, "engine.llm_args", twice)
    return arguments, [*twice, *_schema_findings(arguments, resolved)]


def _schema_findings(arguments: Mapping[str, Any], resolved: Resolved) -> Iterator[Finding]:
    renamed = (
        {} if resolved.line.name == "A" else dict(zip(BY_RATE.keys, gate_of(resolved).keys, strict=True))
    )
    return schema_findings(arguments, resolved.line, renamed)


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
    if line.name in method_of(resolved).llm_api.beside:
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
    speculation, line, llm_api = resolved.speculation, resolved.line, method_of(resolved).llm_api
    decoding_type = llm_api.decoding_types.get(line.name)
    if decoding_type is None or not isinstance(speculation, Speculation):
        return None
    config = {"decoding_type": decoding_type, **llm_api.arguments(speculation, line)}
    converted = converted_drafter(resolved)
    if converted is not None:
        added = llm_api.converted[line.name](speculation, converted)
        config |= {"speculative_model_dir": str(converted), **added}
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


def _merged(
    base: dict[str, Any], more: Mapping[str, Any], where: str, twice: list[Finding]
) -> dict[str, Any]:
    """The base with more keys; sections that both have are merged, anything else that both have is told in `twice`."""
    merged = dict(base)
    for key, value in more.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(merged[key], dict) and isinstance(value, Mapping):
            merged[key] = _merged(merged[key], value, f"{where}.{key}", twice)
        else:
            twice.append(
                not_in_line(
                    f"{where}.{key}: the kit sets it to {merged[key]!r}, and releases differ in which of two wins",
                    f"no {key} in {where}; the spec has a key of its own for it",
                )
            )
    return merged
