"""From the spec's `speculation` section to vLLM's `speculative_config`, or why vLLM does not do it.

What vLLM makes of each method stands in `engine.vllm.methods`; it shortens drafts by batch size alone.

Example:
    >>> from deployments.speculation import PromptLookup
    >>> speculative_config(PromptLookup(method="prompt_lookup", draft_length=3), max_batch_size=8)
    {'method': 'ngram', 'num_speculative_tokens': 3, 'prompt_lookup_max': 3, 'prompt_lookup_min': 1}
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deployments.drafting import Speculation
from deployments.findings import MEASURED, Finding, Unsupported, require_none
from deployments.speculation import AnySpeculation
from engine.vllm.methods import VllmMethod, vllm_method
from engine.vllm.releases import RELEASE


def speculative_config(speculation: AnySpeculation, max_batch_size: int) -> dict[str, Any] | None:
    """The keyword argument of vLLM's `LLM` and `AsyncEngineArgs`; None: no speculation.

    Args:
        speculation: the section.
        max_batch_size: most requests at once (`max_num_seqs`).

    Raises:
        UnsupportedDeployment: vLLM does not have the method, or settings of the section.
    """
    require_none(speculation_findings(speculation))
    method = vllm_method(speculation)
    if not isinstance(speculation, Speculation) or not isinstance(method, VllmMethod):
        return None
    told = {"method": method.name, **method.config(speculation)}
    told = {key: value for key, value in told.items() if value is not None}
    if (schedule := _schedule(speculation, max_batch_size, told["num_speculative_tokens"])) is not None:
        told["num_speculative_tokens_per_batch_size"] = schedule
    return told


def engine_settings(speculation: AnySpeculation, max_batch_size: int) -> dict[str, Any]:
    """`speculative_config` and every other argument that goes with it; arguments and errors as of that.

    A drafter of the kit's own is told its settings in `additional_config`.
    """
    config, method = speculative_config(speculation, max_batch_size), vllm_method(speculation)
    if config is None or not isinstance(method, VllmMethod):
        return {}
    return {"speculative_config": config, **method.arguments(speculation)}


def speculation_findings(speculation: AnySpeculation) -> Iterator[Finding]:
    """Everything in the section that vLLM does not do."""
    method = vllm_method(speculation)
    if isinstance(method, Unsupported):
        yield _finding(f"method {speculation.method}", method)
        return
    if method is None or not isinstance(speculation, Speculation):
        return
    if speculation.acceptance_gate is not None:
        never = Unsupported("never gives speculation up", "draft_length_schedule, by batch size")
        yield _finding("acceptance_gate", never)
    if speculation.draft_policy == "measured":
        yield _finding("draft_policy measured", MEASURED)
    if speculation.drafted_by == "bls":
        yield _finding("drafted_by bls", Unsupported("takes no drafts from outside", "drafted_by: engine"))
    if not method.follows_batch_size and _is_scheduled(speculation):
        always = Unsupported("always drafts with all heads", "neither schedule nor limit")
        yield _finding(f"{speculation.method} by batch size", always)
    for key, (is_set, unsupported) in method.lacks.items():
        if is_set(getattr(speculation, key)):
            yield _finding(f"{speculation.method}.{key}", unsupported)


def _finding(what: str, unsupported: Unsupported) -> Finding:
    reason = f"{what}: vLLM {RELEASE} {unsupported.reason}"
    return Finding("not-in-vllm", "error", reason, unsupported.remedy)


def _is_scheduled(speculation: Speculation) -> bool:
    return speculation.max_concurrency is not None or speculation.draft_length_schedule is not None


def _schedule(speculation: Speculation, max_batch_size: int, longest: int) -> list[list[int]] | None:
    """Ranges of batch sizes, first, last and tokens: without gaps from 1 to the largest batch, as vLLM would otherwise
    carry the last length on to larger batches."""
    if not _is_scheduled(speculation):
        return None
    ranges: list[list[int]] = []
    for size in range(1, max_batch_size + 1):
        length = speculation.longest_draft(size)
        length = longest if length is None else length
        if ranges and ranges[-1][2] == length:
            ranges[-1][1] = size
        else:
            ranges.append([size, size, length])
    return ranges
