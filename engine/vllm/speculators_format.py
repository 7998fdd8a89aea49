"""Drafters in the format of the speculators library: what vLLM would refuse of them, or take for something else.

The library nests a layer's config in `transformer_layer_config` and names the method in `speculators_model_type`; vLLM
flattens both (`transformers_utils/configs/speculators/algos.py`, where the keys are handed on one by one). Tensors have
the same names to all readers. Such a directory is given to vLLM as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deployments.files.reading import read_json_object
from deployments.findings import Finding
from engine.vllm.releases import RELEASE
from speculators.formats.config import CONFIG_FILE
from speculators.formats.errors import CheckpointError

READER = "vllm/transformers_utils/configs/speculators/algos.py"
"""Where a release does so."""

_KIND = "speculators_model_type"
_LAYER_CLASSES = ("llama", "qwen3")  # eagle3_arch_map of 0.24.0 and 0.32.0
_METHODS = {"eagle3": "eagle3", "peagle": "peagle", "dflash": "dflash"}  # of the kit, by the library's name
_BUILT_ON_EAGLE3 = ("eagle3", "peagle")
# Keys that 0.32.0 hands on to EAGLE-3's class and 0.24.0 does not.
_NEWER = ("fc_norm", "norm_output")
_MISSING = object()


def format_findings(checkpoint: Path, method: str) -> Iterator[Finding]:
    """What speaks against a drafter, whatever the release; nothing where the config is not in this format."""
    content = _content(checkpoint)
    if content is None:
        return
    kind = content[_KIND]
    if kind != method:
        other = _METHODS.get(kind) if isinstance(kind, str) else None
        yield _finding(
            "another-method",
            f"speculation.checkpoint: {checkpoint} is a drafter of the kind {kind!r} ({_KIND}), not {method!r}",
            f"method: {other}" if other else f"a drafter whose {_KIND} is {method}",
        )
        return
    if not content.get("speculators_config"):
        yield _finding(
            "checkpoint-unusable",
            f"speculation.checkpoint: {checkpoint} has no speculators_config, by which vLLM {RELEASE} knows its format",
            "the checkpoint, fetched or converted again",
        )
    layer = content.get("transformer_layer_config")
    if not isinstance(layer, dict):
        yield _finding(
            "checkpoint-unusable",
            f"speculation.checkpoint: {checkpoint} has no transformer_layer_config, which its format needs",
            "the checkpoint, fetched or converted again",
        )
    elif (name := layer.get("model_type", "llama")) not in _LAYER_CLASSES and method in _BUILT_ON_EAGLE3:
        yield _finding(
            "not-in-vllm",
            f"speculation.checkpoint: {checkpoint} has a layer of {name!r}; vLLM {RELEASE} has EAGLE-3 for "
            f"{' and '.join(_LAYER_CLASSES)}",
            "a drafter with a layer of one of these",
        )
    if method in _BUILT_ON_EAGLE3 and content.get("norm_before_residual", _MISSING) is _MISSING:
        yield _finding(
            "read-differently",
            f"speculation.checkpoint: {checkpoint} says nothing of norm_before_residual, which vLLM {RELEASE} takes "
            "for true and the speculators library for false",
            "norm_before_residual in its config.json, as the drafter was trained",
        )


def release_findings(checkpoint: Path, method: str, hands_on: Callable[[str], bool]) -> Iterator[Finding]:
    """What an installed release would pass over.

    Args:
        checkpoint: the drafter.
        method: the kit's.
        hands_on: whether the release's reader hands a key on.
    """
    content = _content(checkpoint)
    if content is None or method not in _BUILT_ON_EAGLE3:
        return
    for key in _NEWER:
        if content.get(key) and not hands_on(key):
            yield _finding(
                "passed-over",
                f"speculation.checkpoint: {checkpoint} has {key}, which the installed vLLM does not read here",
                f"vLLM {RELEASE}, or the drafter in the layout of the EAGLE repository",
            )


def _content(checkpoint: Path) -> dict[str, Any] | None:
    """The config, if it is in this format and can be read."""
    if not (checkpoint / CONFIG_FILE).is_file():
        return None
    try:
        content = read_json_object(checkpoint / CONFIG_FILE, CheckpointError)
    except CheckpointError:
        return None  # vLLM says what it thinks of it
    return content if _KIND in content else None


def _finding(name: str, reason: str, remedy: str) -> Finding:
    return Finding(name, "error", reason, remedy)
