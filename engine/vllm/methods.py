"""What each method of speculation is to vLLM: one record a method, by its section of the spec.

Fields and limits: `vllm/config/speculative.py`, `v1/spec_decode/` and `v1/worker/gpu_model_runner.py` of 0.32.0. vLLM
drafts chains only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from deployments.files.reading import read_json_object
from deployments.findings import PLANNED, Finding, Unsupported
from deployments.section import Section
from deployments.speculation import (
    Anpd,
    AnySpeculation,
    DFlash,
    DraftModel,
    Eagle,
    Eagle3,
    Lookahead,
    LowBit,
    Medusa,
    MlpSpeculator,
    Mtp,
    NoSpeculation,
    Pard,
    PEagle,
    PlannedSpeculation,
    PromptLookup,
    Redrafter,
    SuffixAutomaton,
    WindowedSelfDrafting,
)
from engine.vllm.speculators_format import format_findings
from speculators.formats.config import CONFIG_FILE
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import find_file
from speculators.mlp_speculator.checkpoint import WEIGHT_FILES
from speculators.mlp_speculator.config import MlpSpeculatorConfig

KIT_KEY = "drafthouse"
"""Of vLLM's `additional_config`: what the kit's own drafters are told."""

_PROPOSER = "drafthouse.engine.vllm.proposer.AnpdProposer"
_MLP_PROPOSER = "drafthouse.engine.vllm.mlp_speculator.MlpProposer"
CHECKPOINT = "checkpoint"
"""Of what they are told: a directory that is read, not one of vLLM's own."""

S = TypeVar("S")


@dataclass(frozen=True)
class VllmMethod(Generic[S]):
    """A method that vLLM has, or that the kit adds to it.

    Attributes:
        name: of the method, there.
        config: what is the method's own in `speculative_config`; entries that are None are left out.
        lacks: settings that vLLM does not have, by key: which values are meant, and why (of `vLLM RELEASE ...`).
        follows_batch_size: whether it drafts less in larger batches, if told so.
        arguments: of the engine, beside `speculative_config`.
        findings: about its checkpoint.
        completes_draft: a draft model that was kept without its embedding is completed before vLLM reads it.
        is_class: `model` names a class, not a checkpoint.
        needs: keys of `speculative_config` that not every release has.
    """

    name: str
    config: Callable[[S], dict[str, Any]]
    lacks: Mapping[str, tuple[Callable[[Any], bool], Unsupported]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    follows_batch_size: bool = True
    arguments: Callable[[S], dict[str, Any]] = lambda section: {}
    findings: Callable[[S], Iterator[Finding]] = lambda section: iter(())
    completes_draft: bool = False
    is_class: bool = False
    needs: tuple[str, ...] = ()


def vllm_method(speculation: AnySpeculation) -> VllmMethod[Any] | Unsupported | None:
    """The method of a section; None for plain decoding."""
    return METHODS.get(type(speculation), _ABSENT)


def _checkpoint(path: Path, length: int, **more: Any) -> dict[str, Any]:
    """A drafter that is read from a directory."""
    return {"model": str(path), "num_speculative_tokens": length, **more}


def _anpd(section: Anpd) -> dict[str, Any]:
    return {"model": _PROPOSER, "num_speculative_tokens": section.draft_length}


def _prompt_lookup(section: PromptLookup) -> dict[str, Any]:
    return {
        "num_speculative_tokens": section.draft_length,
        "prompt_lookup_max": section.ngram,
        "prompt_lookup_min": 1,
    }


def _suffix(section: SuffixAutomaton) -> dict[str, Any]:
    """vLLM's tree is as deep as match and draft together, and remembers 10,000 requests unless it is told otherwise."""
    longest = None if section.ngram < 0 else section.ngram + section.draft_length
    return {
        "num_speculative_tokens": section.draft_length,
        "suffix_decoding_max_tree_depth": longest,
        "suffix_decoding_max_cached_requests": section.global_pool_size if section.global_pool else 0,
    }


def _draft_model(section: DraftModel) -> dict[str, Any]:
    sampling = "probabilistic" if section.use_draft_logits else None
    return _checkpoint(section.model, section.draft_length, draft_sample_method=sampling)


def _medusa_arguments(section: Medusa) -> dict[str, Any]:
    """Heads with a draft vocabulary load with the check of names off, since vLLM 0.32.0 takes their `token_map`
    in and then misses it (`Medusa.load_weights`, `DefaultModelLoader.track_weights_loading`)."""
    try:
        config = read_json_object(section.checkpoint / CONFIG_FILE, CheckpointError)
        truncated = bool(config.get("truncated_vocab_size", config["vocab_size"]) < config["vocab_size"])
    except (CheckpointError, KeyError, TypeError):
        truncated = False  # not here, or not the kit's: vLLM says what it thinks of it
    return {"model_loader_extra_config": {"enable_weights_track": False}} if truncated else {}


def _medusa_findings(section: Medusa) -> Iterator[Finding]:
    path = section.checkpoint
    if not (path / CONFIG_FILE).is_file():
        return
    try:
        heads = read_json_object(path / CONFIG_FILE, CheckpointError).get("medusa_num_heads")
    except CheckpointError as error:
        yield _unusable(error)
        return
    if isinstance(heads, int) and section.num_heads > heads:
        yield Finding(
            "too-few-heads",
            "error",
            f"speculation.num_heads is {section.num_heads}; {path} has {heads}, and vLLM would draft with heads that "
            "were never loaded",
            f"num_heads: {heads} or fewer",
        )


def _mlp_findings(section: MlpSpeculator) -> Iterator[Finding]:
    path = section.checkpoint
    if not path.is_dir():
        return
    try:
        config = MlpSpeculatorConfig.read(path)
        find_file(path, WEIGHT_FILES)
    except CheckpointError as error:
        yield _unusable(error)
        return
    if section.draft_length > config.n_predict:
        yield Finding(
            "too-few-stages",
            "error",
            f"speculation.draft_length is {section.draft_length}; {path} has {config.n_predict} stages, one a token",
            f"draft_length: {config.n_predict} or fewer",
        )


def _unusable(error: CheckpointError) -> Finding:
    return Finding(
        "checkpoint-unusable",
        "error",
        f"speculation.checkpoint: {error}",
        "the checkpoint, fetched or trained again",
    )


def _is_tree(choices: Any) -> bool:
    """Whether the paths are more than a single one."""
    return choices is not None and any(set(path) != {0} for path in choices)


def _given(value: Any) -> bool:
    return value is not None and value is not False


def _no_trees(remedy: str) -> Unsupported:
    return Unsupported("drafts chains only, no trees", remedy)


def _in_config(remedy: str) -> tuple[Callable[[Any], bool], Unsupported]:
    return _given, Unsupported("reads it from the drafter's config.json", remedy)


_ABSENT = Unsupported("does not have this method", "engine.kind: embedded, or method: suffix_automaton")
_LOOKUP = (
    _given,
    Unsupported("has no lookup beside a trained drafter", "without it, or method: suffix_automaton"),
)

METHODS: Mapping[type[Section], VllmMethod[Any] | Unsupported | None] = MappingProxyType(
    {
        NoSpeculation: None,
        PlannedSpeculation: PLANNED,
        Anpd: VllmMethod[Anpd](
            "custom_class",
            _anpd,
            arguments=lambda section: {"additional_config": {KIT_KEY: {"ngram": section.ngram}}},
            is_class=True,
        ),
        PromptLookup: VllmMethod(
            "ngram",
            _prompt_lookup,
            {
                "use_oldest": (
                    lambda value: not value,
                    Unsupported("drafts the oldest continuation", "use_oldest: true"),
                )
            },
        ),
        SuffixAutomaton: VllmMethod(
            "suffix",
            _suffix,
            {"texts": (_given, Unsupported("begins with an empty pool", "global_pool: true without texts"))},
        ),
        DraftModel: VllmMethod(
            "draft_model", _draft_model, {"suffix_automaton": _LOOKUP}, completes_draft=True
        ),
        Medusa: VllmMethod[Medusa](
            "medusa",
            lambda section: _checkpoint(section.checkpoint, section.num_heads),
            {
                "choices": (_is_tree, _no_trees("no choices, a chain of num_heads tokens")),
                "suffix_automaton": _LOOKUP,
            },
            follows_batch_size=False,
            arguments=_medusa_arguments,
            findings=_medusa_findings,
        ),
        Eagle: VllmMethod[Eagle](
            "eagle",
            lambda section: _checkpoint(section.checkpoint, section.depth),
            {"choices": (_is_tree, _no_trees("no choices, a chain of depth tokens"))},
            findings=lambda section: format_findings(section.checkpoint, "eagle"),
        ),
        Eagle3: VllmMethod[Eagle3](
            "eagle3",
            lambda section: _checkpoint(section.checkpoint, section.draft_length),
            {
                "dynamic_tree": (
                    _given,
                    _no_trees("no dynamic_tree, a chain of draft_length tokens"),
                ),
                "suffix_automaton": _LOOKUP,
                "layers_to_capture": _in_config("eagle_aux_hidden_state_layer_ids there"),
            },
            findings=lambda section: format_findings(section.checkpoint, "eagle3"),
        ),
        PEagle: VllmMethod[PEagle](
            "eagle3",
            lambda section: _checkpoint(section.checkpoint, section.draft_length, parallel_drafting=True),
            {
                "suffix_automaton": _LOOKUP,
                "layers_to_capture": _in_config("eagle_aux_hidden_state_layer_ids there"),
            },
            findings=lambda section: format_findings(section.checkpoint, "peagle"),
            needs=("parallel_drafting",),
        ),
        Mtp: VllmMethod[Mtp](
            "mtp",
            lambda section: {"num_speculative_tokens": section.draft_length},
            {"suffix_automaton": _LOOKUP},
        ),
        Pard: VllmMethod[Pard](
            "draft_model",
            lambda section: _checkpoint(section.model, section.draft_length, parallel_drafting=True),
            {"suffix_automaton": _LOOKUP, "mask_token_id": _in_config("pard_token there")},
            needs=("parallel_drafting",),
        ),
        DFlash: VllmMethod[DFlash](
            "dflash",
            lambda section: _checkpoint(section.model, section.draft_length),
            {
                "mask_token_id": _in_config("dflash_config.mask_token_id there"),
                "target_layer_ids": _in_config("dflash_config.target_layer_ids there"),
            },
            findings=lambda section: format_findings(section.model, "dflash"),
        ),
        MlpSpeculator: VllmMethod[MlpSpeculator](
            "custom_class",
            lambda section: {"model": _MLP_PROPOSER, "num_speculative_tokens": section.draft_length},
            {
                "candidates": (lambda value: value > 1, _no_trees("candidates: 1")),
                "suffix_automaton": _LOOKUP,
            },
            arguments=lambda section: {"additional_config": {KIT_KEY: {CHECKPOINT: str(section.checkpoint)}}},
            findings=_mlp_findings,
            is_class=True,
        ),
        Redrafter: Unsupported("has no recurrent heads", "method: eagle3 with a head trained for it"),
        Lookahead: Unsupported("has no Jacobi window", "method: prompt_lookup or suffix_automaton"),
        LowBit: Unsupported(
            "does not let the target draft for itself in four bits",
            "method: draft_model, with a quantised checkpoint of the target as its model and a KV cache of its own",
        ),
        WindowedSelfDrafting: Unsupported(
            "does not let the target draft for itself with a window", "method: draft_model"
        ),
    }
)
