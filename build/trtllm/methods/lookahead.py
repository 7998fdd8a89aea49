"""Lookahead decoding, in the target's engine, whose draft length is exactly what the section's numbers make."""

from collections.abc import Iterator, Mapping

from build.trtllm.methods.record import InEngines, Method, support
from build.trtllm.releases import went_with_engines
from build.trtllm.resolved import Supported
from deployments.findings import Finding, Unsupported
from deployments.speculation import Lookahead


def _parameters(section: Lookahead) -> Mapping[str, str]:
    return {
        "lookahead_window_size": str(section.window),
        "lookahead_ngram_size": str(section.ngram),
        "lookahead_verification_set_size": str(section.verification_set),
    }


def _formula(section: Lookahead, length: int, where: str) -> Iterator[Finding]:
    needed = section.max_draft_tokens
    window, ngram, verification = section.window, section.ngram, section.verification_set
    if length != needed:
        yield Finding(
            "lookahead-formula",
            "error",
            f"{where}: max_draft_len is {length}, but (window, ngram, verification_set) = "
            f"({window}, {ngram}, {verification}) needs exactly ({ngram} - 2) + ({window} - 1 + {verification}) x "
            f"({ngram} - 1) = {needed}",
            f"max_draft_len {needed}",
            "examples/lookahead/README.md; tensorrtllm_backend#710",
        )


LOOKAHEAD = Method(
    section=Lookahead,
    support=support(
        engines=Supported("in_model", "lookahead_decoding", "lookahead"),
        line_a=Unsupported(
            "the LLM API of 1.2.1 has Lookahead for compiled engines only", "runtime: engines"
        ),
        line_b=Unsupported(
            went_with_engines("Lookahead"), "method: suffix_automaton or prompt_lookup, or line: A"
        ),
    ),
    draft_tokens=lambda section: section.max_draft_tokens,
    engines=InEngines(states_draft_length=True, parameters=_parameters, draft_length_findings=_formula),
)
