"""Which method runs on which release line and runtime of TensorRT-LLM: the whole table as data, and `resolve`.

A cell says how the method is built and who drafts; a refusal says why it cannot be and what comes nearest. Where
the spec leaves `engine.runtime` open, the line's first runtime that has the method is taken: compiled engines
before the LLM API.

Example::

    resolved = resolve(load_spec(Path("deployments/llama3-8b-eagle3-trtllm.yaml")))
    resolved.line.name, resolved.runtime, resolved.cell.drafting      # ("A", "llm_api", "in_model")
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from build.trtllm.releases import (
    LINE_A,
    LINES,
    LineName,
    Refused,
    ReleaseLine,
    Runtime,
    detect_version,
    line_of_version,
)
from build.trtllm.resolved import Cell, Resolved
from build.trtllm.support.constraints import refusals
from deployments.spec import DeploymentSpec


@dataclass(frozen=True)
class Refusal:
    """Why a cell is empty, and the nearest thing that works, as a change of the spec."""

    reason: str
    nearest: str


_PLAIN = Cell("none")
_LLM_API = Cell("in_model")
_USER = Cell("user_drafter")

_ENGINES: dict[str, Cell | Refusal] = {
    "none": _PLAIN,
    "draft_model": Cell("draft_engine", "draft_tokens_external"),
    "windowed": Cell("draft_engine", "draft_tokens_external"),
    "anpd": Cell("bls", "draft_tokens_external"),
    "prompt_lookup": Cell("bls", "draft_tokens_external"),
    "medusa": Cell("in_model", "medusa", "medusa"),
    "eagle": Cell("in_model", "eagle", "eagle"),
    "redrafter": Cell("in_model", "explicit_draft_tokens", "redrafter"),
    "lookahead": Cell("in_model", "lookahead_decoding", "lookahead"),
    "eagle3": Refusal("TensorRT engines know EAGLE-1 and EAGLE-2 only", "runtime: llm_api"),
    "mtp": Refusal("TensorRT engines have no multi-token prediction layers", "runtime: llm_api"),
    "suffix_automaton": Refusal("suffix automata came with 1.3, after the engines", "method: prompt_lookup"),
    "pard": Refusal("PARD came with 1.3, after the engines", "line: B, or method: draft_model"),
    "dflash": Refusal("DFlash came with 1.3, after the engines", "line: B, or method: redrafter"),
    "mlp_speculator": Refusal(
        "no release of TensorRT-LLM loads an MLP speculator, and no head that it has computes the same: every "
        "step of one has its own weights, normalisation and token embedding",
        "method: redrafter, a head that carries state from token to token and is trained with `drafthouse train`",
    ),
}

_LLM_API_A: dict[str, Cell | Refusal] = {
    "none": _PLAIN,
    "draft_model": _LLM_API,
    "eagle3": _LLM_API,
    "prompt_lookup": _LLM_API,
    "mtp": _LLM_API,
    "anpd": _USER,
    "medusa": Refusal("the LLM API of 1.2.1 has Medusa for compiled engines only", "runtime: engines"),
    "eagle": Refusal(
        "the PyTorch backend does not load EAGLE-1 checkpoints", "runtime: engines, or method: eagle3"
    ),
    "redrafter": Refusal("the LLM API has no ReDrafter", "runtime: engines"),
    "lookahead": Refusal("the LLM API of 1.2.1 has Lookahead for compiled engines only", "runtime: engines"),
    "windowed": Refusal(
        "the LLM API has one KV cache configuration for target and draft, so no window for the draft alone",
        "runtime: engines",
    ),
    "suffix_automaton": Refusal("suffix automata came with 1.3", "line: B, or method: prompt_lookup"),
    "pard": Refusal("PARD came with 1.3", "line: B, or method: draft_model"),
    "dflash": Refusal("DFlash came with 1.3", "line: B, or method: eagle3"),
    "mlp_speculator": Refusal(
        "the LLM API shows a drafter of one's own no hidden states of the target, which an MLP speculator needs",
        "method: eagle3, a head on the target's hidden states that is trained with `drafthouse train`; "
        "or method: redrafter with runtime: engines",
    ),
}

_WENT = "{} went with the TensorRT engines in 1.3.0rc21"

_LLM_API_B: dict[str, Cell | Refusal] = _LLM_API_A | {
    "suffix_automaton": _LLM_API,
    "pard": _LLM_API,
    "dflash": _LLM_API,
    "medusa": Refusal(_WENT.format("Medusa"), "line: A, or method: eagle3 with a head trained for it"),
    "eagle": Refusal(_WENT.format("EAGLE-1 and EAGLE-2"), "method: eagle3 with an EAGLE-3 head, or line: A"),
    "redrafter": Refusal(_WENT.format("ReDrafter"), "line: A, or method: eagle3 with a head trained for it"),
    "lookahead": Refusal(_WENT.format("Lookahead"), "method: suffix_automaton or prompt_lookup, or line: A"),
    "windowed": Refusal(
        "a second engine with a window of its own went with the TensorRT engines in 1.3.0rc21, and the LLM API has "
        "one KV cache configuration for target and draft",
        "line: A with runtime: engines, or method: draft_model",
    ),
    "mlp_speculator": Refusal(
        "the LLM API shows a drafter of one's own no hidden states of the target, which an MLP speculator needs",
        "method: eagle3, a head on the target's hidden states that is trained with `drafthouse train`",
    ),
}

CELLS: Mapping[tuple[LineName, Runtime], Mapping[str, Cell | Refusal]] = MappingProxyType(
    {
        ("A", "engines"): MappingProxyType(_ENGINES),
        ("A", "llm_api"): MappingProxyType(_LLM_API_A),
        ("B", "llm_api"): MappingProxyType(_LLM_API_B),
    }
)


def resolve(spec: DeploymentSpec, line: ReleaseLine | None = None) -> Resolved:
    """Choose line and runtime where the spec leaves them open, and check everything that can be known beforehand.

    Args:
        spec: a deployment whose engine is TensorRT-LLM.
        line: the release line, when it is known already; None follows the spec, and `auto` asks the container.

    Raises:
        Refused: the cell is empty, or an option of the spec cannot be had in it.
        SpecError: the deployment is for the embedded engine, or the container cannot be asked.
    """
    resolved = unchecked(spec, line)
    for refusal in refusals(resolved):
        raise refusal
    return resolved


def unchecked(spec: DeploymentSpec, line: ReleaseLine | None = None) -> Resolved:
    """As `resolve`, without the check of single options, which `build.trtllm.support.constraints` tells all at once."""
    chosen = line or _line(spec)
    runtime, cell = _cell(spec, chosen)
    return Resolved(spec, chosen, runtime, cell)


def _line(spec: DeploymentSpec) -> ReleaseLine:
    engine = spec.tensorrt_llm
    if engine.line == "auto":
        return line_of_version(detect_version(engine.images.triton or LINE_A.triton_image))
    return LINES[engine.line]


def _cell(spec: DeploymentSpec, line: ReleaseLine) -> tuple[Runtime, Cell]:
    wanted = spec.tensorrt_llm.runtime
    method = spec.speculation.method
    if wanted is not None and wanted not in line.runtimes:
        raise Refused(
            f"engine.runtime: {wanted} is not in line {line.name} ({line.releases}): TensorRT engines were removed "
            "in 1.3.0rc21",
            "runtime: llm_api, or line: A",
        )
    refusal = None
    for runtime in (wanted,) if wanted else line.runtimes:
        entry = CELLS[line.name, runtime][method]
        if isinstance(entry, Cell):
            return runtime, entry
        refusal = refusal or entry
    assert refusal is not None
    raise Refused(f"{method} on line {line.name}: {refusal.reason}", refusal.nearest)
