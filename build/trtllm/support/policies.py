"""When to draft less: `max_concurrency`, `draft_length_schedule`, `acceptance_gate`; what a release makes of each.

The LLM API takes all three for every method and applies them where its code happens to look:

 - line A (1.2.1, `_torch/pyexecutor/py_executor.py`) looks at the drafter, so at drafters beside the target's model:
   `draft_model`, `prompt_lookup`, one's own; others draft within it, unless a switch of theirs is false
   (`InLlmApi.beside_switch`);
 - line B drafts within the target's model but for n-grams and drafters of one's own. Its schedule is of those within
   (`SpeculativeDecodingMode.support_dynamic_draft_len`); that of n-grams is validated by largest batch sizes and read
   by smallest ones (`_torch/speculative/drafter.py`). Its gate (pull request #12905) watches those within, by
   acceptance rate; candidates before it still have line A's gate. `max_concurrency` works for all.

What would be passed over is refused.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from build.trtllm.installed import LLM_ARGUMENTS, installed_release
from build.trtllm.methods.table import method_of
from build.trtllm.releases import line_of_version, not_in_line, release_and_candidate, version_in
from build.trtllm.resolved import Resolved, Supported
from deployments.findings import MEASURED, Finding

POLICIES = ("max_concurrency", "draft_length_schedule", "acceptance_gate")
# The first candidate of 1.3.0 whose class has the rate (its class page); one from before may have it or not.
_FIRST_BY_RATE = "1.3.0rc27"


@dataclass(frozen=True)
class Gate:
    """The acceptance gate of a release.

    Attributes:
        keys: window and threshold in `speculative_config`.
        field: the threshold of the spec's `acceptance_gate` that it understands.
        window: what the window counts.
        within: whether it watches drafters within the target's model, or those beside it.
    """

    keys: tuple[str, str]
    field: Literal["min_length", "min_rate"]
    window: str
    within: bool


BY_LENGTH = Gate(("acceptance_window", "acceptance_length_threshold"), "min_length", "requests", within=False)
BY_RATE = Gate(
    ("acceptance_rate_window_size", "acceptance_rate_threshold"), "min_rate", "iterations", within=True
)


def gate_of(resolved: Resolved) -> Gate:
    """The gate of the release that will run: as its installed class has it, else by its version."""
    if resolved.line.name == "A":
        return BY_LENGTH
    release = installed_release()
    if release is not None and line_of_version(release.version) is resolved.line:
        fields = release.fields(LLM_ARGUMENTS, "DecodingBaseConfig")
        if fields:
            return BY_RATE if BY_RATE.keys[0] in fields else BY_LENGTH
        return _by_version(release.version)
    return _by_version(release_named(resolved))


def release_named(resolved: Resolved) -> str:
    """The release that the spec's images name, or the line's own."""
    images = resolved.engine.images
    named = (version_in(image) for image in (images.triton, images.build) if image)
    return next(filter(None, named), resolved.line.pinned)


def _by_version(version: str) -> Gate:
    return BY_RATE if _order(version) >= _order(_FIRST_BY_RATE) else BY_LENGTH


def _order(version: str) -> tuple[tuple[int, int, int], float]:
    """By which releases come one after the other; a final release after its candidates."""
    release, candidate = release_and_candidate(version)
    return release, math.inf if candidate is None else candidate


def policy_findings(resolved: Resolved) -> Iterator[Finding]:
    """A finding for each policy that the release would pass over or cannot read."""
    if getattr(resolved.speculation, "draft_policy", None) == "measured":
        yield not_in_line(
            f"TensorRT-LLM {MEASURED.reason} (speculation.draft_policy: measured)", MEASURED.remedy
        )
    given = given_policies(resolved)
    if not given:
        return
    if resolved.runtime == "engines":
        for key in given:
            yield not_in_line(
                f"engines draft the same at every batch size (speculation.{key})",
                f"no {key}" + (", or runtime: llm_api" if _llm_api_has(resolved) else ""),
            )
        return
    for key in given:
        yield from (_on_line_a if resolved.line.name == "A" else _on_line_b)(resolved, key)
    gate = getattr(resolved.speculation, "acceptance_gate", None)
    known = gate_of(resolved)
    if gate is not None and getattr(gate, known.field) is None:
        other = "min_rate" if known.field == "min_length" else "min_length"
        yield not_in_line(
            f"{_releases(resolved, known)} gates on {known.field}, not on {other} (speculation.acceptance_gate)",
            f"acceptance_gate with {known.field}, and window in {known.window}",
        )


def given_policies(resolved: Resolved) -> list[str]:
    """The policies that the spec asks for, in its own section or in `engine.llm_args.speculative_config`."""
    speculation = resolved.speculation
    if resolved.support.drafting == "none":
        return []
    free = _free(resolved)
    other = {"draft_length_schedule": ("draft_len_schedule",), "acceptance_gate": gate_of(resolved).keys}
    return [
        key
        for key in POLICIES
        if getattr(speculation, key) is not None or any(name in free for name in other.get(key, (key,)))
    ]


def beside_the_target(resolved: Resolved) -> bool:
    """Whether the LLM API runs the drafter beside the target's model (`PyExecutor.drafter`), not within it."""
    llm_api = method_of(resolved).llm_api
    if resolved.line.name in llm_api.beside:
        return True
    return resolved.line.name == "A" and _free(resolved).get(llm_api.beside_switch) is False


def _on_line_a(resolved: Resolved, key: str) -> Iterator[Finding]:
    if not beside_the_target(resolved):
        switch = method_of(resolved).llm_api.beside_switch
        yield not_in_line(
            f"line A applies {key} to drafters beside the target's model, and {resolved.method} drafts within it, "
            "where it has no effect",
            f"no {key}, line: B, or engine.llm_args.speculative_config.{switch}: false",
        )
    else:
        yield from _of_ones_own(resolved, key)


def _on_line_b(resolved: Resolved, key: str) -> Iterator[Finding]:
    if resolved.support.drafting == "user_drafter":
        yield from _of_ones_own(resolved, key)
    elif key == "draft_length_schedule" and beside_the_target(resolved):
        yield not_in_line(
            "line B wants the schedule of n-grams by largest batch sizes and reads it by smallest ones "
            "(speculation.draft_length_schedule)",
            "max_concurrency, or method: suffix_automaton",
        )
    elif key == "acceptance_gate" and (gate := gate_of(resolved)).within == beside_the_target(resolved):
        where = "within the target's model" if gate.within else "beside the target's model"
        yield not_in_line(
            f"the gate of {_releases(resolved, gate)} watches drafters {where}, which {resolved.method} is not, so it "
            "has no effect",
            "no acceptance_gate, or method: " + ("suffix_automaton" if gate.within else "prompt_lookup"),
        )


def _of_ones_own(resolved: Resolved, key: str) -> Iterator[Finding]:
    if resolved.support.drafting == "user_drafter" and key != "max_concurrency":
        yield not_in_line(
            f"a drafter of one's own has no {key} (speculation.{key})",
            "max_concurrency, or method: prompt_lookup",
        )


def _releases(resolved: Resolved, gate: Gate) -> str:
    if resolved.line.name == "B" and gate is BY_LENGTH:
        return f"line B before {_FIRST_BY_RATE}"
    return f"line {resolved.line.name}"


def _free(resolved: Resolved) -> Mapping[str | None, Any]:
    given = resolved.engine.llm_args.get("speculative_config")
    return given if isinstance(given, dict) else {}


def _llm_api_has(resolved: Resolved) -> bool:
    return isinstance(method_of(resolved).support["A", "llm_api"], Supported)
