"""Multi-token prediction: layers of the target, on the LLM API."""

from collections.abc import Iterator
from typing import Any

from build.trtllm.methods.record import IN_MODEL, InLlmApi, Method, support
from build.trtllm.methods.suffix_automaton import (
    enhanced_has_probabilities,
    enhancer_arguments,
    enhancer_constraints,
)
from build.trtllm.releases import ReleaseLine
from build.trtllm.resolved import Resolved
from deployments.findings import Finding, Unsupported
from deployments.speculation import Mtp

_LENGTH = {"A": "num_nextn_predict_layers", "B": "max_draft_len"}


def _arguments(section: Mtp, line: ReleaseLine) -> dict[str, Any]:
    return {_LENGTH[line.name]: section.draft_length} | enhancer_arguments(section)


def _guided(resolved: Resolved, section: Mtp) -> Iterator[Finding]:
    if resolved.engine.guided_decoding is not None and section.draft_length > 1:
        yield Finding(
            "guided-decoding-with-mtp",
            "warning",
            f"guided decoding was reported broken with several MTP tokens (draft_length: {section.draft_length})",
            "draft_length: 1, or no guided_decoding",
            "TensorRT-LLM#7878",
        )


MTP = Method(
    section=Mtp,
    support=support(
        engines=Unsupported("TensorRT engines have no multi-token prediction layers", "runtime: llm_api"),
        line_a=IN_MODEL,
        line_b=IN_MODEL,
    ),
    llm_api=InLlmApi(
        decoding_types={"A": "MTP", "B": "MTP"},
        arguments=_arguments,
        beside_switch="mtp_eagle_one_model",
        has_probabilities=enhanced_has_probabilities,
    ),
    constraints=(enhancer_constraints,),
    checks=(_guided,),
)
