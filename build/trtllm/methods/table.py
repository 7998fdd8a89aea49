"""All methods, and what follows from their records.

Example::

    METHODS["draft_model"].llm_api.decoding_types["B"]      # "Draft_Target"
    draft_tokens(spec.speculation)                          # 5
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from build.model_paths import is_hub_id
from build.trtllm.methods.anpd import ANPD
from build.trtllm.methods.dflash import DFLASH
from build.trtllm.methods.draft_model import DRAFT_MODEL
from build.trtllm.methods.eagle import EAGLE
from build.trtllm.methods.eagle3 import EAGLE3
from build.trtllm.methods.lookahead import LOOKAHEAD
from build.trtllm.methods.low_bit import LOW_BIT
from build.trtllm.methods.medusa import MEDUSA
from build.trtllm.methods.mlp_speculator import MLP_SPECULATOR
from build.trtllm.methods.mtp import MTP
from build.trtllm.methods.pard import PARD
from build.trtllm.methods.peagle import PEAGLE
from build.trtllm.methods.plain import PLAIN
from build.trtllm.methods.prompt_lookup import PROMPT_LOOKUP
from build.trtllm.methods.record import Method, support
from build.trtllm.methods.redrafter import REDRAFTER
from build.trtllm.methods.suffix_automaton import SUFFIX_AUTOMATON
from build.trtllm.methods.windowed import WINDOWED
from build.trtllm.releases import LineName
from build.trtllm.resolved import Resolved
from deployments.findings import PLANNED, Unsupported
from deployments.places import drafter_source
from deployments.spec import DeploymentSpec
from deployments.speculation import AnySpeculation, Choices, PlannedSpeculation

_ALL: tuple[Method[Any], ...] = (
    PLAIN,
    ANPD,
    PROMPT_LOOKUP,
    SUFFIX_AUTOMATON,
    DRAFT_MODEL,
    MEDUSA,
    EAGLE,
    EAGLE3,
    PEAGLE,
    REDRAFTER,
    LOOKAHEAD,
    WINDOWED,
    LOW_BIT,
    MTP,
    PARD,
    DFLASH,
    MLP_SPECULATOR,
)


_ABSENT = Unsupported("TensorRT-LLM does not have this method", "engine.kind: embedded, or method: anpd")
_PLANNED = Unsupported(f"TensorRT-LLM {PLANNED.reason}", PLANNED.remedy)


def _records() -> Iterator[tuple[str, Method[Any]]]:
    """Every method of the spec; one that has no record here runs nowhere."""
    known = {method.section: method for method in _ALL}
    for annotated in get_args(get_args(AnySpeculation)[0]):
        section, tag = get_args(annotated)
        without = _PLANNED if section is PlannedSpeculation else _ABSENT
        yield tag.tag, known.get(section) or Method(section, support(without, without, without))


METHODS: Mapping[str, Method[Any]] = MappingProxyType(dict(_records()))


def method_of(resolved: Resolved) -> Method[Any]:
    """The method of a deployment."""
    return METHODS[resolved.method]


def draft_tokens(speculation: AnySpeculation) -> int:
    """Most tokens that one step of one request verifies besides its own; 0 without speculation."""
    return METHODS[speculation.method].draft_tokens(speculation)


def tree_of(resolved: Resolved) -> Choices | None:
    """The tree that the engine of a deployment drafts: the spec's or a default; None for methods without one."""
    tree = method_of(resolved).tree
    return None if tree is None else tree.drafted(resolved.speculation)


def accepts_by_logits(resolved: Resolved) -> bool:
    """Whether both engines give their logits, and drafts are accepted by them."""
    return method_of(resolved).engines.accepts_by_logits(resolved.speculation)


def drafter_directory(spec: DeploymentSpec) -> Path | None:
    """Where the weights lie that draft; None if there are none besides the target's."""
    if METHODS[spec.speculation.method].drafts_itself:
        return spec.target.model
    return drafter_source(spec.speculation)


def converted_drafter(resolved: Resolved) -> Path | None:
    """Where a drafter goes in the layout that the release line loads; None: drafters are loaded as published.

    The conversion reads both checkpoints, so both have to be here; one on the hub is left to the LLM API.
    """
    source = drafter_source(resolved.speculation)
    if resolved.line.name not in method_of(resolved).llm_api.converted or source is None:
        return None
    if is_hub_id(source) or is_hub_id(resolved.spec.target.model):
        return None
    return resolved.workspace / f"{resolved.method}-drafter"


def decoding_types(line: LineName) -> dict[str, str]:
    """`speculative_config.decoding_type` of a release line, by method."""
    return {
        name: method.llm_api.decoding_types[line]
        for name, method in METHODS.items()
        if line in method.llm_api.decoding_types
    }
