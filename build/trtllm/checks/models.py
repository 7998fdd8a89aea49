"""The models of a deployment against each other: readable, of one vocabulary, long enough."""

from collections.abc import Generator, Iterator
from pathlib import Path

from build.targets.errors import TargetError
from build.trtllm.checks.checkpoints import HuggingFaceCheckpoint
from build.trtllm.checks.paths import model_paths
from build.trtllm.methods.record import Drafter
from build.trtllm.methods.table import accepts_by_logits, method_of
from build.trtllm.resolved import Resolved
from deployments.findings import Finding

_SHOWN = 3


def model_findings(resolved: Resolved) -> Iterator[Finding]:
    """All findings of this module."""
    (_, directory), *drafter = model_paths(resolved.spec).items()
    target = yield from _read(directory, "target.model")
    if target is not None:
        yield from _tokenizer(target)
        yield from _positions(resolved, target, "target.model")
    for key, place in drafter:
        kind = method_of(resolved).drafter
        if kind is not None:
            draft = yield from _read(place, key)
            if draft is not None and target is not None:
                yield from _drafter(resolved, target, draft, key, kind)


def _read(directory: Path, key: str) -> Generator[Finding, None, HuggingFaceCheckpoint | None]:
    """The checkpoint (as the generator's value), or None and the reason as a finding, unless there is none."""
    if not directory.exists():
        return None
    try:
        return HuggingFaceCheckpoint(directory)
    except TargetError as error:
        yield Finding("model-unreadable", "error", f"{key}: {error}", "a directory in Hugging Face layout")
        return None


def _tokenizer(target: HuggingFaceCheckpoint) -> Iterator[Finding]:
    if not target.has_tokenizer:
        yield Finding(
            "tokenizer-missing",
            "error",
            f"{target.directory} has no tokenizer, which preprocessing and postprocessing load",
            "tokenizer.json and tokenizer_config.json of the model beside its config.json",
        )
    yield from _unreadable(target)
    if target.tokens and target.vocab_size and max(target.tokens.values()) >= target.vocab_size:
        yield Finding(
            "tokens-beyond-vocabulary",
            "error",
            f"{target.directory}: the tokenizer has ids up to {max(target.tokens.values())}, config.json a vocab_size "
            f"of {target.vocab_size}",
            "the tokenizer and config.json of one model",
            "TensorRT-LLM PR #3615",
        )


def _unreadable(model: HuggingFaceCheckpoint) -> Iterator[Finding]:
    if model.tokenizer_problem is not None:
        yield Finding(
            "tokenizer-unreadable", "error", model.tokenizer_problem, "tokenizer.json as the model has it"
        )


def _positions(resolved: Resolved, model: HuggingFaceCheckpoint, key: str) -> Iterator[Finding]:
    longest = resolved.engine.max_sequence_length
    if model.positions is not None and model.positions < longest:
        yield Finding(
            "sequence-exceeds-positions",
            "error" if key == "target.model" else "warning",
            f"engine.max_sequence_length {longest} is beyond the {model.positions} positions of {key}",
            f"max_sequence_length: {model.positions}",
        )


def _drafter(
    resolved: Resolved,
    target: HuggingFaceCheckpoint,
    draft: HuggingFaceCheckpoint,
    key: str,
    drafter: Drafter,
) -> Iterator[Finding]:
    if drafter.kind == "model":
        yield from _positions(resolved, draft, key)
        yield from _unreadable(draft)
        yield from _same_tokens(target, draft)
        yield from _same_width(resolved, target, draft, key)
    else:
        yield from _hidden_size(target, draft, key)
    if target.vocab_size and draft.vocab_size and target.vocab_size != draft.vocab_size:
        padded = _is_padding(target, draft) and not accepts_by_logits(resolved)
        yield Finding(
            "vocabulary-size",
            "warning" if padded and drafter.takes_padding else "error",
            f"{key} has a vocab_size of {draft.vocab_size}, the target {target.vocab_size}"
            + (" (the tokenizers are the same: the difference is padding)" if padded else ""),
            "a drafter made for this very target" if not padded else "use_draft_logits: false, as it is",
            "TensorRT-LLM PR #3615",
        )


def _same_width(
    resolved: Resolved, target: HuggingFaceCheckpoint, draft: HuggingFaceCheckpoint, key: str
) -> Iterator[Finding]:
    """Draft logits are as wide as the draft's vocabulary, which every engine pads to its tensor parallelism."""
    if not accepts_by_logits(resolved) or not target.vocab_size or target.vocab_size != draft.vocab_size:
        return
    engine = resolved.engine
    ranks = engine.tensor_parallel, engine.draft.tensor_parallel or engine.tensor_parallel
    ours, theirs = (-(-target.vocab_size // count) * count for count in ranks)
    if ours != theirs:
        yield Finding(
            "draft-logits-width",
            "error",
            f"the engine of {key} pads its {draft.vocab_size} tokens to {theirs} (tensor parallelism {ranks[1]}), the "
            f"target's to {ours} ({ranks[0]}), so its logits do not fit",
            f"engine.draft.tensor_parallel: {ranks[0]}, or use_draft_logits: false",
            "TensorRT-LLM models/modeling_utils.py, pad_vocab_size",
        )


def _is_padding(target: HuggingFaceCheckpoint, draft: HuggingFaceCheckpoint) -> bool:
    """Whether both have one tokenizer, and every token of it."""
    if not target.tokens or target.tokens != draft.tokens:
        return False
    return max(target.tokens.values()) < min(target.vocab_size or 0, draft.vocab_size or 0)


def _same_tokens(target: HuggingFaceCheckpoint, draft: HuggingFaceCheckpoint) -> Iterator[Finding]:
    """Drafts are token ids, so a token must have the same id on both sides."""
    if target.tokens is None or draft.tokens is None:
        return
    differ = [token for token in draft.tokens if target.tokens.get(token) != draft.tokens[token]]
    lacking = [token for token in target.tokens if token not in draft.tokens]
    if differ:
        shown = ", ".join(
            f"{token!r} {draft.tokens[token]} (target: {target.tokens.get(token, 'none')})"
            for token in differ[:_SHOWN]
        )
        yield Finding(
            "vocabulary-mismatch",
            "error",
            f"{len(differ)} tokens of the draft have another id than the target's: {shown}",
            "a draft model with the target's tokenizer",
            "TensorRT-LLM PR #3615",
        )
    elif lacking:
        shown = ", ".join(map(repr, lacking[:_SHOWN]))
        yield Finding(
            "vocabulary-added-tokens",
            "warning",
            f"the draft lacks {len(lacking)} tokens of the target ({shown}): it cannot read or draft them",
            "a draft model with the target's added tokens",
            "TensorRT-LLM PR #3615",
        )


def _hidden_size(target: HuggingFaceCheckpoint, draft: HuggingFaceCheckpoint, key: str) -> Iterator[Finding]:
    """Heads read the target's hidden states."""
    expected = draft.number("target_hidden_size") or draft.hidden_size
    if target.hidden_size and expected and target.hidden_size != expected:
        yield Finding(
            "drafter-of-another-target",
            "error",
            f"{key} was made for hidden states of {expected}, the target's have {target.hidden_size}",
            "a head that was trained for this very target",
        )
