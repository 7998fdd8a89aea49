"""Settings of the spec that contradict each other or crash the server, whatever the model.

What a release cannot do of a method stands elsewhere (`build.trtllm.support.constraints`).
"""

import re
from collections.abc import Iterator

from build.trtllm.methods.table import draft_tokens, method_of
from build.trtllm.resolved import Resolved
from build.trtllm.support.constraints import chunks_context
from deployments.drafting import Speculation
from deployments.findings import Finding

_NEWEST_KNOWN_IMAGE = (26, 7)


def setting_findings(resolved: Resolved) -> Iterator[Finding]:
    """All findings of this module."""
    for check in (_guided, _step_sizes, _devices, _ranks, _image):
        yield from check(resolved)
    for method_check in method_of(resolved).checks:
        yield from method_check(resolved, resolved.speculation)


def _guided(resolved: Resolved) -> Iterator[Finding]:
    """Guided decoding with a batch size at which nothing is drafted."""
    speculation, engine = resolved.speculation, resolved.engine
    if engine.guided_decoding is None or not isinstance(speculation, Speculation):
        return
    schedule = dict(speculation.draft_length_schedule or {})
    if speculation.max_concurrency is not None and resolved.line.name == "B":
        # Line B turns max_concurrency into a schedule.
        schedule = {speculation.max_concurrency: draft_tokens(speculation)}
    if schedule and (0 in schedule.values() or max(schedule) < engine.max_batch_size):
        key = "max_concurrency" if speculation.max_concurrency is not None else "draft_length_schedule"
        yield Finding(
            "schedule-reaches-zero-with-guided-decoding",
            "error",
            f"engine.guided_decoding with speculation.{key}: at some batch size up to max_batch_size "
            f"{engine.max_batch_size} nothing is drafted, which crashes the capture of CUDA graphs",
            f"a draft length of 1 or more for every batch size up to {engine.max_batch_size}, or no guided_decoding",
            "TensorRT-LLM#15022",
        )


def _step_sizes(resolved: Resolved) -> Iterator[Finding]:
    """Tokens of a step against the tokens that drafts and prompts bring into it."""
    engine = resolved.engine
    step = draft_tokens(resolved.speculation) + 1
    if step > engine.max_num_tokens:
        yield Finding(
            "draft-exceeds-step",
            "error",
            f"one request brings {step} tokens into a step (draft and its own), engine.max_num_tokens is "
            f"{engine.max_num_tokens}",
            f"max_num_tokens of {step * engine.max_batch_size}, or a shorter draft",
            "Drafter.should_use_spec_decode",
        )
    elif step * engine.max_batch_size > engine.max_num_tokens:
        fits = engine.max_num_tokens // step
        yield Finding(
            "step-smaller-than-batch",
            "warning",
            f"{engine.max_batch_size} requests of {step} tokens each do not fit into a step of engine.max_num_tokens "
            f"{engine.max_num_tokens}: only {fits} are verified at once",
            f"max_num_tokens: {step * engine.max_batch_size}, or max_batch_size: {fits}",
            "Drafter.should_use_spec_decode",
        )
    if engine.max_input_length > engine.max_num_tokens and not _chunked(resolved):
        yield Finding(
            "prompt-exceeds-step",
            "error",
            f"prompts of engine.max_input_length {engine.max_input_length} do not fit into a step of max_num_tokens "
            f"{engine.max_num_tokens}, and they are not split",
            f"max_num_tokens: {engine.max_input_length}, or a smaller max_input_length",
            "TensorRT-LLM docs, tuning max batch size and max num tokens",
        )


def _chunked(resolved: Resolved) -> bool:
    """Whether long prompts are split over steps."""
    if resolved.runtime == "llm_api":
        return bool(resolved.engine.llm_args.get("enable_chunked_prefill", False))
    return chunks_context(resolved, "tensorrt_llm")


def _devices(resolved: Resolved) -> Iterator[Finding]:
    """As many GPUs named as ranks need."""
    engine = resolved.engine
    pairs = [("launch", engine.launch.gpu_device_ids, engine.tensor_parallel * engine.pipeline_parallel)]
    if resolved.draft_engine is not None:
        # The second engine is not pipelined.
        pairs.append(
            ("draft", engine.draft.gpu_device_ids, engine.draft.tensor_parallel or engine.tensor_parallel)
        )
    for section, devices, ranks in pairs:
        if devices is not None and len(devices) != ranks:
            yield Finding(
                "gpu-device-ids",
                "error",
                f"engine.{section}.gpu_device_ids names {len(devices)} GPUs, and its model runs on {ranks}",
                f"{ranks} different GPU numbers",
            )


def _ranks(resolved: Resolved) -> Iterator[Finding]:
    """Two engines of different parallelism in one MPI world."""
    engine = resolved.engine
    draft = engine.draft.tensor_parallel
    if resolved.draft_engine is None or draft in (None, engine.tensor_parallel):
        return
    if engine.launch.mode != "orchestrator":
        yield Finding(
            "draft-tensor-parallel",
            "error",
            f"engine.draft.tensor_parallel {draft} differs from the target's {engine.tensor_parallel}, but leader mode "
            "gives every model the same MPI ranks",
            f"launch.mode: orchestrator, or draft.tensor_parallel: {engine.tensor_parallel}",
            "TensorRT-LLM PR #11838; tensorrtllm_backend README, leader and orchestrator mode",
        )


def _image(resolved: Resolved) -> Iterator[Finding]:
    """A Triton image newer than those whose release is known."""
    image = resolved.triton_image
    match = re.search(r"tritonserver:(\d\d)\.(\d\d)-trtllm", image)
    if match and (int(match[1]), int(match[2])) > _NEWEST_KNOWN_IMAGE:
        yield Finding(
            "image-of-unknown-release",
            "warning",
            f"{image} is newer than any whose TensorRT-LLM is known (26.07 has 1.2.1); it may belong to line B",
            "line: auto, which asks the image",
            "tensorrtllm_backend branches r25.02 to r26.07",
        )
