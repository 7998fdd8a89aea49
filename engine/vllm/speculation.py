"""From the spec's `speculation` section to vLLM's `speculative_config`, or why vLLM does not do it.

Fields and limits: `vllm/config/speculative.py`, `v1/spec_decode/` and `v1/worker/gpu_model_runner.py` of 0.32.0. vLLM
drafts chains only, and shortens them by batch size alone.

Example:
    >>> from deployments.speculation import PromptLookup
    >>> speculative_config(PromptLookup(method="prompt_lookup", draft_length=3), max_batch_size=8)
    {'method': 'ngram', 'num_speculative_tokens': 3, 'prompt_lookup_max': 3, 'prompt_lookup_min': 1}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deployments.speculation import (
    Anpd,
    AnySpeculation,
    DFlash,
    DraftModel,
    Eagle,
    Eagle3,
    Medusa,
    Mtp,
    NoSpeculation,
    Pard,
    PromptLookup,
    Speculation,
    SuffixAutomaton,
)
from speculators.formats.config import CONFIG_FILE, read_json_object
from speculators.formats.errors import CheckpointError

RELEASE = "0.32.0"
"""Of vLLM, for which this is written."""

KIT_KEY = "drafthouse"
"""Of vLLM's `additional_config`: what the kit's own drafters are told."""

_PROPOSER = "engine.vllm.proposer.AnpdProposer"
_CHAINS = "drafts chains only, no trees"


def _is_tree(choices: Any) -> bool:
    """Whether the paths are more than a single one."""
    return choices is not None and any(set(path) != {0} for path in choices)


class NotInVllm(ValueError):
    """vLLM does not do what the section asks for.

    Attributes:
        reason: what, and why not.
        nearest: a change of the spec that it does.
    """

    def __init__(self, reason: str, nearest: str) -> None:
        super().__init__(f"{reason}; nearest: {nearest}")
        self.reason, self.nearest = reason, nearest


def speculative_config(speculation: AnySpeculation, max_batch_size: int) -> dict[str, Any] | None:
    """The keyword argument of vLLM's `LLM` and `AsyncEngineArgs`; None: no speculation.

    Args:
        speculation: the section.
        max_batch_size: most requests at once (`max_num_seqs`).

    Raises:
        NotInVllm: vLLM does not have the method, or a setting of the section.
    """
    for refusal in refusals(speculation):
        raise refusal
    if isinstance(speculation, NoSpeculation):
        return None
    told = {key: value for key, value in _TOLD[type(speculation)](speculation).items() if value is not None}
    if (schedule := _schedule(speculation, max_batch_size, told["num_speculative_tokens"])) is not None:
        told["num_speculative_tokens_per_batch_size"] = schedule
    return told


def engine_settings(speculation: AnySpeculation, max_batch_size: int) -> dict[str, Any]:
    """`speculative_config` and every other argument that goes with it; arguments and errors as of that.

    A drafter of the kit's own is told its settings in `additional_config`. Medusa heads with a draft vocabulary load
    with the check of names switched off, since vLLM 0.32.0 takes their `token_map` in and then misses it
    (`Medusa.load_weights`, `DefaultModelLoader.track_weights_loading`).
    """
    settings: dict[str, Any] = {"speculative_config": speculative_config(speculation, max_batch_size)}
    if isinstance(speculation, Anpd):
        settings["additional_config"] = {KIT_KEY: {"ngram": speculation.ngram}}
    if isinstance(speculation, Medusa) and _has_draft_vocabulary(speculation.checkpoint):
        settings["model_loader_extra_config"] = {"enable_weights_track": False}
    return {key: value for key, value in settings.items() if value is not None}


def _has_draft_vocabulary(checkpoint: Path) -> bool:
    try:
        config = read_json_object(checkpoint / CONFIG_FILE)
        return bool(config.get("truncated_vocab_size", config["vocab_size"]) < config["vocab_size"])
    except (CheckpointError, KeyError, TypeError):
        return False  # not here, or not the kit's: vLLM says what it thinks of it


def refusals(speculation: AnySpeculation) -> Iterator[NotInVllm]:
    """Everything in the section that vLLM does not do."""
    method = speculation.method
    if isinstance(speculation, NoSpeculation):
        return
    if type(speculation) not in _TOLD:
        reason, nearest = _ABSENT[method]
        yield NotInVllm(f"method {method}: vLLM {RELEASE} {reason}", nearest)
        return
    if speculation.acceptance_gate is not None:
        yield NotInVllm(
            f"acceptance_gate: vLLM {RELEASE} never gives speculation up",
            "draft_length_schedule, by batch size",
        )
    if speculation.drafted_by == "bls":
        yield NotInVllm(f"drafted_by bls: vLLM {RELEASE} takes no drafts from outside", "drafted_by: engine")
    if isinstance(speculation, Medusa) and _is_scheduled(speculation):
        yield NotInVllm(
            f"medusa by batch size: vLLM {RELEASE} always drafts with all heads", "neither schedule nor limit"
        )
    for key, (is_set, reason, nearest) in _UNSUPPORTED.get(type(speculation), {}).items():
        if is_set(getattr(speculation, key)):
            yield NotInVllm(f"{method}.{key}: vLLM {RELEASE} {reason}", nearest)


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


def _anpd(speculation: Anpd) -> dict[str, Any]:
    return {
        "method": "custom_class",
        "model": _PROPOSER,
        "num_speculative_tokens": speculation.draft_length,
    }


def _prompt_lookup(speculation: PromptLookup) -> dict[str, Any]:
    return {
        "method": "ngram",
        "num_speculative_tokens": speculation.draft_length,
        "prompt_lookup_max": speculation.ngram,
        "prompt_lookup_min": 1,
    }


def _suffix(speculation: SuffixAutomaton) -> dict[str, Any]:
    """vLLM's tree is as deep as match and draft together, and remembers 10,000 requests unless it is told otherwise."""
    longest = None if speculation.ngram < 0 else speculation.ngram + speculation.draft_length
    return {
        "method": "suffix",
        "num_speculative_tokens": speculation.draft_length,
        "suffix_decoding_max_tree_depth": longest,
        "suffix_decoding_max_cached_requests": speculation.global_pool_size if speculation.global_pool else 0,
    }


def _draft_model(speculation: DraftModel) -> dict[str, Any]:
    return {
        "method": "draft_model",
        "model": str(speculation.model),
        "num_speculative_tokens": speculation.draft_length,
        "draft_sample_method": "probabilistic" if speculation.use_draft_logits else None,
    }


def _medusa(speculation: Medusa) -> dict[str, Any]:
    return {
        "method": "medusa",
        "model": str(speculation.checkpoint),
        "num_speculative_tokens": speculation.num_heads,
    }


def _eagle(speculation: Eagle) -> dict[str, Any]:
    return {
        "method": "eagle",
        "model": str(speculation.checkpoint),
        "num_speculative_tokens": speculation.depth,
    }


def _eagle3(speculation: Eagle3) -> dict[str, Any]:
    return {
        "method": "eagle3",
        "model": str(speculation.checkpoint),
        "num_speculative_tokens": speculation.draft_length,
    }


def _mtp(speculation: Mtp) -> dict[str, Any]:
    return {"method": "mtp", "num_speculative_tokens": speculation.draft_length}


def _pard(speculation: Pard) -> dict[str, Any]:
    return {
        "method": "draft_model",
        "model": str(speculation.model),
        "num_speculative_tokens": speculation.draft_length,
        "parallel_drafting": True,
    }


def _dflash(speculation: DFlash) -> dict[str, Any]:
    return {
        "method": "dflash",
        "model": str(speculation.model),
        "num_speculative_tokens": speculation.draft_length,
    }


_TOLD: Mapping[type, Callable[[Any], dict[str, Any]]] = {
    Anpd: _anpd,
    PromptLookup: _prompt_lookup,
    SuffixAutomaton: _suffix,
    DraftModel: _draft_model,
    Medusa: _medusa,
    Eagle: _eagle,
    Eagle3: _eagle3,
    Mtp: _mtp,
    Pard: _pard,
    DFlash: _dflash,
}

_ABSENT: Mapping[str, tuple[str, str]] = {
    "mlp_speculator": (
        "has no class for MLPSpeculatorPreTrainedModel any more, and shows a drafter of one's own no hidden states",
        "method: eagle3, a head on the target's hidden states that is trained with `drafthouse train`",
    ),
    "redrafter": ("has no recurrent heads", "method: eagle3 with a head trained for it"),
    "lookahead": ("has no Jacobi window", "method: prompt_lookup or suffix_automaton"),
    "windowed": ("does not let the target draft for itself with a window", "method: draft_model"),
}


def _given(value: Any) -> bool:
    return value is not None and value is not False


_LOOKUP = (_given, "has no lookup beside a trained drafter", "without it, or method: suffix_automaton")
_IN_CONFIG = "reads it from the drafter's config.json"

_UNSUPPORTED: Mapping[type, Mapping[str, tuple[Callable[[Any], bool], str, str]]] = {
    PromptLookup: {
        "use_oldest": (lambda value: not value, "drafts the oldest continuation", "use_oldest: true"),
    },
    Medusa: {"choices": (_is_tree, _CHAINS, "no choices, a chain of num_heads tokens")},
    Eagle: {"choices": (_is_tree, _CHAINS, "no choices, a chain of depth tokens")},
    Eagle3: {
        "dynamic_tree": (_given, _CHAINS, "no dynamic_tree, a chain of draft_length tokens"),
        "suffix_automaton": _LOOKUP,
        "layers_to_capture": (_given, _IN_CONFIG, "eagle_aux_hidden_state_layer_ids there"),
    },
    Mtp: {"suffix_automaton": _LOOKUP},
    Pard: {
        "suffix_automaton": _LOOKUP,
        "mask_token_id": (_given, _IN_CONFIG, "pard_token there"),
    },
    DFlash: {
        "mask_token_id": (_given, _IN_CONFIG, "dflash_config.mask_token_id there"),
        "target_layer_ids": (_given, _IN_CONFIG, "dflash_config.target_layer_ids there"),
    },
}
