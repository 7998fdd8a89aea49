"""Engines and repositories that are there already."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from build.findings import Finding
from build.targets.errors import TargetError
from build.targets.layout import read_json
from build.trtllm.checks.commands import length_findings, mode_findings
from build.trtllm.resolved import Resolved

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
    if resolved.runtime == "engines":
        yield from _engine(resolved, resolved.target_engine)
        if resolved.draft_engine is not None and not (resolved.draft_engine / "config.json").is_file():
            yield _no_engine(resolved.draft_engine)


def repository_findings(repository: Path) -> Iterator[Finding]:
    """Findings about a repository's config.pbtxt: template variables left, escapes that fill_template.py wants."""
    for path in sorted(repository.glob("*/config.pbtxt")):
        yield from _configuration(path)


def _configuration(path: Path) -> Iterator[Finding]:
    text = path.read_text(encoding="utf-8")
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


def _engine(resolved: Resolved, directory: Path) -> Iterator[Finding]:
    path = directory / "config.json"
    if not path.is_file():
        yield _no_engine(directory)
        return
    try:
        build = read_json(path).get("build_config", {})
    except TargetError as error:
        yield Finding("engine-unreadable", "error", str(error), "an engine that trtllm-build has written")
        return
    mode = _mode(build.get("speculative_decoding_mode"))
    yield from mode_findings(resolved, mode, f"the engine in {directory}")
    yield from length_findings(resolved, int(build.get("max_draft_len") or 0), f"the engine in {directory}")
    for key, wanted in _limits(resolved).items():
        built = build.get(key)
        if isinstance(built, int) and built < wanted:
            yield Finding(
                "engine-limits",
                "error",
                f"the engine in {directory} was built for {key} {built}, the spec says {wanted}",
                "drafthouse build, or the smaller number in the spec",
            )


def _mode(value: Any) -> str | None:
    return _MODES.get(value, f"number {value}") if isinstance(value, int) else value


def _limits(resolved: Resolved) -> dict[str, int]:
    engine = resolved.engine
    return {
        "max_batch_size": engine.max_batch_size,
        "max_input_len": engine.max_input_length,
        "max_seq_len": engine.max_sequence_length,
        "max_num_tokens": engine.max_num_tokens,
    }


def _no_engine(directory: Path) -> Finding:
    return Finding("engine-missing", "error", f"there is no engine in {directory}", "drafthouse build first")
