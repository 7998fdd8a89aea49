"""EAGLE-3, on the LLM API: `Eagle` of line A, which loads the EAGLE repository's layout alone, `Eagle3` of line B."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from build.trtllm.methods.record import (
    IN_MODEL,
    Drafter,
    InLlmApi,
    Method,
    as_list,
    given,
    support,
    with_weights,
)
from build.trtllm.methods.suffix_automaton import (
    enhanced_has_probabilities,
    enhancer_arguments,
    enhancer_constraints,
)
from build.trtllm.releases import ReleaseLine, not_in_line
from build.trtllm.resolved import Resolved
from deployments.findings import Finding, Unsupported
from deployments.spec import SpecError
from deployments.speculation import Eagle3
from speculators.eagle3.config import Eagle3Config
from speculators.formats.config import CONFIG_FILE
from speculators.formats.errors import CheckpointError


def _draft_tokens(section: Eagle3) -> int:
    tree = section.dynamic_tree
    return section.draft_length if tree is None else tree.total or tree.top_k * section.draft_length


def _arguments(section: Eagle3, line: ReleaseLine) -> dict[str, Any]:
    config = with_weights(section.draft_length, section.checkpoint)
    config |= {"eagle3_model_arch": section.architecture}
    config |= given(eagle3_layers_to_capture=as_list(section.layers_to_capture))
    tree = section.dynamic_tree
    if tree is not None:
        config |= {"use_dynamic_tree": True, "dynamic_tree_max_topK": tree.top_k}
        config |= given(max_total_draft_tokens=tree.total)
    return config | enhancer_arguments(section)


def _converted(section: Eagle3, directory: Path) -> dict[str, Any]:
    """The layers that a converted drafter was trained on, which line A does not read from it.

    Raises:
        SpecError: its config.json is none of an EAGLE-3 drafter.
    """
    places = (place for place in (directory, section.checkpoint) if (place / CONFIG_FILE).is_file())
    source = next(places, None)
    if section.layers_to_capture is not None or source is None:
        return {}
    try:
        return given(eagle3_layers_to_capture=Eagle3Config.read(source).target_layers)
    except CheckpointError as error:
        raise SpecError(f"speculation.checkpoint: {error}") from None


def _dynamic_tree(resolved: Resolved, section: Eagle3) -> Iterator[Finding]:
    if section.dynamic_tree is not None and resolved.line.name == "A":
        yield not_in_line(
            "EAGLE-3's dynamic tree came with 1.3 (pull request #12062)", "no dynamic_tree, or line: B"
        )


EAGLE3 = Method(
    section=Eagle3,
    support=support(
        engines=Unsupported("TensorRT engines know EAGLE-1 and EAGLE-2 only", "runtime: llm_api"),
        line_a=IN_MODEL,
        line_b=IN_MODEL,
    ),
    draft_tokens=_draft_tokens,
    llm_api=InLlmApi(
        decoding_types={"A": "Eagle", "B": "Eagle3"},
        arguments=_arguments,
        beside_switch="eagle3_one_model",
        has_probabilities=enhanced_has_probabilities,
        converted={"A": _converted},
    ),
    drafter=Drafter("head"),
    constraints=(_dynamic_tree, enhancer_constraints),
)
