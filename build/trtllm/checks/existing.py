"""Engines and repositories that are there already."""

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from build.targets.errors import TargetError
from build.trtllm.checks.commands import length_findings, mode_findings
from build.trtllm.engines.commands import sequence_length
from build.trtllm.methods.table import accepts_by_logits
from build.trtllm.resolved import Resolved
from deployments.files.reading import read_json_object
from deployments.findings import Finding

# tensorrt_llm/models/modeling_utils.py, SpeculativeDecodingMode: an IntFlag, which config.json holds as its number.
_MODES = {
    1: None,
    2: "draft_tokens_external",
    4: "medusa",
    8: "lookahead_decoding",
    16: "explicit_draft_tokens",
    32: "eagle",
}
_UNFILLED = re.compile(r"\$\{\w+\}")
_BACKSLASH = re.compile(r'string_value:\s*"[^"]*\\\\[,:]')


def engine_findings(resolved: Resolved) -> Iterator[Finding]:
    """Findings about compiled engines, from their config.json."""
    if resolved.runtime != "engines":
        return
    yield from _target_engine(resolved, resolved.target_engine)
    if resolved.draft_engine is not None:
        build = yield from _build_config(resolved.draft_engine)
        if build is not None:
            yield from _logits(resolved, build, resolved.draft_engine)


def repository_findings(repository: Path) -> Iterator[Finding]:
    """Findings about a repository's config.pbtxt: template variables left, escapes that fill_template.py wants."""
    for path in sorted(repository.glob("*/config.pbtxt")):
        yield from _configuration(path)


def _configuration(path: Path) -> Iterator[Finding]:
    text = path.read_text(encoding="utf-8", errors="replace")
    unfilled = sorted(set(_UNFILLED.findall(text)))
    if unfilled:
        yield Finding(
            "unfilled-template",
            "error",
            f"{path} has {', '.join(unfilled)}",
            "the repository as drafthouse build assembles it, or values for them",
            "tensorrtllm_backend#720, TensorRT-LLM#2709",
        )
    if _BACKSLASH.search(text):
        yield Finding(
            "escaped-value",
            "error",
            rf"{path} has a value with \, or \: in it; backslashes are for the command line of fill_template.py",
            "the value without backslashes",
            "tensorrtllm_backend tools/fill_template.py",
        )


def _target_engine(resolved: Resolved, directory: Path) -> Iterator[Finding]:
    build = yield from _build_config(directory)
    if build is None:
        return
    mode = _mode(build.get("speculative_decoding_mode"))
    yield from mode_findings(resolved, mode, f"the engine in {directory}")
    yield from length_findings(resolved, build.get("max_draft_len") or 0, f"the engine in {directory}")
    for key, wanted in _sizes(resolved).items():
        built = build.get(key)
        if isinstance(built, int) and built < wanted:
            yield Finding(
                "engine-limits",
                "error",
                f"the engine in {directory} was built for {key} {built}, the spec says {wanted}",
                "drafthouse build, or the smaller number in the spec",
            )
    built, needed = build.get("max_seq_len"), sequence_length(resolved)
    if isinstance(built, int) and resolved.engine.max_sequence_length <= built < needed:
        rest = built - needed + resolved.engine.max_sequence_length
        yield Finding(
            "engine-without-room-for-drafts",
            "warning",
            f"the engine in {directory} was built for max_seq_len {built}, and counts a draft beside prompt and "
            f"output: requests of more than {rest} tokens are refused",
            f"drafthouse build, which builds it for {needed}",
            "TensorRT-LLM batch_manager/llmRequest.cpp, LlmRequest::validate",
        )
    yield from _logits(resolved, build, directory)


def _build_config(directory: Path) -> Generator[Finding, None, dict[str, Any] | None]:
    """What an engine was built with (as the generator's value), or None and the reason as a finding."""
    path = directory / "config.json"
    if not path.is_file():
        yield Finding(
            "engine-missing", "error", f"there is no engine in {directory}", "drafthouse build first"
        )
        return None
    try:
        build: dict[str, Any] = read_json_object(path, TargetError).get("build_config", {})
        if not isinstance(build, dict) or not isinstance(build.get("max_draft_len") or 0, int):
            raise TargetError(f"{path} does not say what the engine was built with (build_config)")
    except TargetError as error:
        yield Finding("engine-unreadable", "error", str(error), "an engine that trtllm-build has written")
        return None
    return build


def _logits(resolved: Resolved, build: dict[str, Any], directory: Path) -> Iterator[Finding]:
    """Acceptance by logits needs those of both engines."""
    if accepts_by_logits(resolved) and not build.get("gather_generation_logits", False):
        yield Finding(
            "engine-without-logits",
            "error",
            f"the engine in {directory} was built without gather_generation_logits, which "
            "speculation.use_draft_logits needs",
            "drafthouse build, or use_draft_logits: false",
            "TensorRT-LLM examples/draft_target_model/README.md",
        )


def _mode(value: Any) -> str | None:
    return _MODES.get(value, f"number {value}") if isinstance(value, int) else value


def _sizes(resolved: Resolved) -> dict[str, int]:
    engine = resolved.engine
    return {
        "max_batch_size": engine.max_batch_size,
        "max_input_len": engine.max_input_length,
        "max_seq_len": engine.max_sequence_length,
        "max_num_tokens": engine.max_num_tokens,
    }
