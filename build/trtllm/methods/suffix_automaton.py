"""Suffix automata, which came with 1.3: as a method (`SA`), and beside trained drafters (`sa_config`)."""

from collections.abc import Iterator
from typing import Any, Protocol

from build.trtllm.methods.record import IN_MODEL, InLlmApi, Method, given, support
from build.trtllm.releases import ReleaseLine, not_in_line
from build.trtllm.resolved import Resolved
from deployments.enhancer import SelfLookupEnhancer
from deployments.findings import Finding, Unsupported
from deployments.speculation import SuffixAutomaton


class Enhanced(Protocol):
    """A section of a drafter that may have a suffix automaton beside it."""

    @property
    def suffix_automaton(self) -> SelfLookupEnhancer | None: ...


def enhancer_arguments(section: Enhanced) -> dict[str, Any]:
    """`sa_config` of a trained drafter."""
    enhancer = section.suffix_automaton
    if enhancer is None:
        return {}
    return {"sa_config": {"threshold": enhancer.threshold, "enable_global_pool": enhancer.global_pool}}


def enhancer_constraints(resolved: Resolved, section: Enhanced) -> Iterator[Finding]:
    """Line A has none, and there it replaces what a drafter proposes."""
    enhancer = section.suffix_automaton
    if enhancer is not None and resolved.line.name == "A":
        yield not_in_line("suffix automata came with 1.3", "no suffix_automaton, or line: B")
    if enhancer is not None and enhancer.chain_length is not None:
        yield not_in_line(
            "speculation.suffix_automaton.chain_length is the embedded engine's: sa_config has a match replace the "
            "drafter's proposal, and nothing go on with it",
            "no chain_length",
        )


def no_enhancer(resolved: Resolved, section: Enhanced) -> Iterator[Finding]:
    """For methods that have none beside them there."""
    if section.suffix_automaton is not None:
        yield not_in_line(
            f"speculation.suffix_automaton is the embedded engine's beside {resolved.method}: sa_config stands beside "
            "EAGLE-3, MTP and PARD only",
            "no suffix_automaton, or method: eagle3",
        )


def enhanced_has_probabilities(section: Enhanced) -> bool:
    """What is looked up has no probabilities."""
    return section.suffix_automaton is None


def _arguments(section: SuffixAutomaton, line: ReleaseLine) -> dict[str, Any]:
    return {
        "max_draft_len": section.draft_length,
        "max_matching_ngram_size": section.ngram,
        "enable_global_pool": section.global_pool,
    } | given(global_pool_size=section.global_pool_size)


def _pool(resolved: Resolved, section: SuffixAutomaton) -> Iterator[Finding]:
    batch, size = resolved.engine.max_batch_size, section.global_pool_size
    if size is not None and size < batch:
        yield not_in_line(
            f"the global pool must hold all running requests: global_pool_size {size} is below max_batch_size {batch}",
            f"global_pool_size: {batch}",
        )


def _embedded_only(resolved: Resolved, section: SuffixAutomaton) -> Iterator[Finding]:
    if section.texts is not None:
        yield not_in_line(
            "speculation.texts is the embedded engine's: TensorRT-LLM searches what it is asked and answers",
            "no texts, or global_pool: true",
        )


SUFFIX_AUTOMATON = Method(
    section=SuffixAutomaton,
    support=support(
        engines=Unsupported("suffix automata came with 1.3, after the engines", "method: prompt_lookup"),
        line_a=Unsupported("suffix automata came with 1.3", "line: B, or method: prompt_lookup"),
        line_b=IN_MODEL,
    ),
    llm_api=InLlmApi(
        decoding_types={"B": "SA"}, arguments=_arguments, has_probabilities=lambda section: False
    ),
    constraints=(_pool, _embedded_only),
)
