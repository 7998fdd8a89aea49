"""Parameters of the `tensorrt_llm` and `tensorrt_llm_draft` models on NVIDIA's C++ backend, from a resolved spec.

Two engines on one GPU share the memory that is left after the weights. The backend takes its fraction of what is
free when its engine is loaded, and Triton loads models in no fixed order. So the fractions are chosen such that
the cache of the draft holds as many tokens as the target's when the target comes first, and each cache is bounded by
what requests can fill at all, which keeps the draft from taking more when it comes first.

Parameter names and meanings: NVIDIA/TensorRT-LLM triton_backend/inflight_batcher_llm, model_instance_state.cc,
model_state.cc and utils.cc, and its README's draft-target recipe (last release 1.2.1).
"""

from dataclasses import dataclass
from pathlib import Path

from build.triton.parameters import READ_UNGUARDED
from build.trtllm.methods.table import accepts_by_logits, draft_tokens, drafter_directory, method_of, tree_of
from build.trtllm.methods.trees import as_braces
from build.trtllm.resolved import FROM_OUTSIDE, Resolved
from deployments.files.reading import read_json_object

_GIB = 2**30
# Bytes of KV cache that a draft needs for a token, by those of the target, where the checkpoints do not tell.
_USUAL_DRAFT_SHARE = 0.25
_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"


@dataclass(frozen=True)
class KvShare:
    """The KV cache of one engine: fraction of the free memory, and most tokens (None: no bound)."""

    fraction: float
    max_tokens: int | None


def target_parameters(
    resolved: Resolved, engine: Path, tokenizer: Path, tokenizer_info: Path | None
) -> dict[str, str | None]:
    """Parameters of the target; `tokenizer_info` is XGrammar's, for guided decoding."""
    engine_spec = resolved.engine
    target, _ = kv_shares(resolved)
    guided = engine_spec.guided_decoding
    return {
        **_common(resolved, engine, target),
        **_decoding(resolved),
        "gpu_device_ids": _devices(engine_spec.launch.gpu_device_ids),
        "participant_ids": _ranks(participants(resolved)[0]),
        "tokenizer_dir": str(tokenizer),
        "guided_decoding_backend": guided or "",
        "xgrammar_tokenizer_info_path": str(tokenizer_info) if guided and tokenizer_info else "",
    }


def draft_parameters(resolved: Resolved, engine: Path) -> dict[str, str | None]:
    """Parameters of the second engine."""
    _, draft = kv_shares(resolved)
    return {
        **_common(resolved, engine, draft),
        "gpu_device_ids": _devices(
            resolved.engine.draft.gpu_device_ids or resolved.engine.launch.gpu_device_ids
        ),
        "participant_ids": _ranks(participants(resolved)[1]),
        **method_of(resolved).engines.draft_parameters(resolved.speculation),
    }


def participants(resolved: Resolved) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """MPI ranks of target and draft in orchestrator mode (rank 0 orchestrates); empty otherwise."""
    if resolved.engine.launch.mode != "orchestrator":
        return (), ()
    target = resolved.engine.tensor_parallel * resolved.engine.pipeline_parallel
    draft = draft_ranks(resolved)
    return tuple(range(1, target + 1)), tuple(range(target + 1, target + 1 + draft))


def draft_ranks(resolved: Resolved) -> int:
    """Processes of the second engine, which is built without pipeline parallelism; 0 without one."""
    if resolved.draft_engine is None:
        return 0
    return resolved.engine.draft.tensor_parallel or resolved.engine.tensor_parallel


def fast_logits(resolved: Resolved) -> bool:
    """Whether draft logits go from engine to engine: with the orchestrator they have ranks of their own to do so."""
    return accepts_by_logits(resolved) and resolved.engine.launch.mode == "orchestrator"


def kv_shares(resolved: Resolved) -> tuple[KvShare, KvShare]:
    """How target and draft share the KV cache memory of a GPU (see above)."""
    engine = resolved.engine
    whole = engine.kv_cache.free_gpu_memory_fraction
    tokens = engine.max_batch_size * engine.max_sequence_length
    if resolved.draft_engine is None:
        return KvShare(whole, None), KvShare(whole, None)
    window = method_of(resolved).engines.draft_window(resolved.speculation)
    kept = tokens
    if window is not None:
        per_request = window + draft_tokens(resolved.speculation)
        kept = engine.max_batch_size * min(per_request, engine.max_sequence_length)
    if not _same_gpus(resolved):
        return KvShare(whole, tokens), KvShare(whole, kept)
    ratio = _draft_share(resolved) * kept / tokens
    target = whole / (1 + ratio)
    draft = target * ratio / (1 - target)
    return KvShare(target, tokens), KvShare(min(draft, whole), kept)


def _common(resolved: Resolved, engine: Path, share: KvShare) -> dict[str, str | None]:
    spec = resolved.engine
    from_outside = resolved.support.drafting in FROM_OUTSIDE
    host = spec.kv_cache.host_memory_gib
    return {
        **dict.fromkeys(READ_UNGUARDED, ""),
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(engine),
        "executor_worker_path": _WORKER,
        "max_beam_width": "1",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "kv_cache_free_gpu_mem_fraction": f"{share.fraction:.4f}",
        "max_tokens_in_paged_kv_cache": str(share.max_tokens) if share.max_tokens else None,
        "kv_cache_host_memory_bytes": str(round(host * _GIB)) if host else None,
        # The verified tokens of one call are the prompt of the next, for target and draft alike.
        "enable_kv_cache_reuse": _flag(from_outside or spec.kv_cache.block_reuse),
        "exclude_input_in_output": _flag(from_outside or resolved.spec.serving.exclude_input_in_output),
        "speculative_decoding_fast_logits": "true" if fast_logits(resolved) else None,
    }


def _decoding(resolved: Resolved) -> dict[str, str | None]:
    """The decoding mode and what belongs to it; a target that drafts are sent to has none."""
    values: dict[str, str | None] = {"decoding_mode": resolved.support.decoding_mode}
    tree = tree_of(resolved)
    if tree is not None:
        values[f"{resolved.method}_choices"] = as_braces(tree)
    return {**values, **method_of(resolved).engines.parameters(resolved.speculation)}


def _same_gpus(resolved: Resolved) -> bool:
    draft = resolved.engine.draft.gpu_device_ids
    target = resolved.engine.launch.gpu_device_ids or (0,)
    return draft is None or bool(set(draft) & set(target))


def _draft_share(resolved: Resolved) -> float:
    """KV bytes of the draft for a token, by those of the target."""
    directory = drafter_directory(resolved.spec)
    if directory is None or method_of(resolved).drafts_itself:
        return 1.0
    draft = _kv_elements(directory)
    target = _kv_elements(resolved.spec.target.model)
    return draft / target if draft and target else _USUAL_DRAFT_SHARE


def _kv_elements(model: Path) -> int | None:
    """Elements of KV cache for a token, from a checkpoint's config.json; None if it does not tell."""
    try:
        config = read_json_object(model / "config.json", ValueError)
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        return int(2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * width)
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def _devices(ids: tuple[int, ...] | None) -> str | None:
    return ",".join(map(str, ids)) if ids else None


def _ranks(ranks: tuple[int, ...]) -> str | None:
    return ",".join(map(str, ranks)) if ranks else None


def _flag(value: bool) -> str:
    return "true" if value else "false"
