"""What the kit has to know of a method to build and serve it on TensorRT-LLM: one record a method.

A method that says nothing of compiled engines or the LLM API does not run there. Whatever takes a section takes that
of the method; whatever takes a `Resolved` has one whose section it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from build.trtllm.releases import LineName, ReleaseLine, Runtime
from build.trtllm.resolved import Resolved, Supported
from deployments.findings import Finding, Unsupported
from deployments.speculation import Choices

S = TypeVar("S")
Check = Callable[[Resolved, S], Iterator[Finding]]
"""Findings about a deployment and its section."""

Entry = Supported | Unsupported
Support = Mapping[tuple[LineName, Runtime], Entry]


def support(engines: Entry, line_a: Entry, line_b: Entry) -> Support:
    """By release line and runtime: compiled engines, the LLM API of line A, and that of line B."""
    return {("A", "engines"): engines, ("A", "llm_api"): line_a, ("B", "llm_api"): line_b}


def own_length(section: Any) -> int:
    """The tokens of a step, where a step drafts a chain."""
    return int(section.draft_length)


IN_MODEL = Supported("in_model")
FROM_BLS = Supported("bls", "draft_tokens_external")
FROM_DRAFT_ENGINE = Supported("draft_engine", "draft_tokens_external")


@dataclass(frozen=True)
class Tree(Generic[S]):
    """The token tree of a method whose engine is built for one.

    Attributes:
        drafted: the spec's tree, or a default.
        findings: what is wrong with the spec's tree, without which `drafted` is defined.
        limits: keys of the section that an engine for a tree has besides `choices`.
    """

    drafted: Callable[[S], Choices]
    findings: Callable[[S], Iterator[Finding]]
    limits: Callable[[Choices], Mapping[str, int]]


@dataclass(frozen=True)
class Heads(Generic[S]):
    """Drafting heads that `build.converters` adds to the target's checkpoint.

    Attributes:
        options: of its command.
        model_types: of targets that engines carry such heads on.
    """

    options: Callable[[S], Sequence[str]]
    model_types: tuple[str, ...]


@dataclass(frozen=True)
class InEngines(Generic[S]):
    """A method on compiled engines.

    Attributes:
        heads: that are added to the target's checkpoint; none: the target is compiled as it is.
        states_draft_length: `trtllm-build` is told the draft tokens of a step; otherwise the checkpoint says it.
        draft_length_findings: about an engine's draft length (the last argument says whose), where longer than
            needed is wrong too.
        parameters: of the `tensorrt_llm` model.
        draft_parameters: of the `tensorrt_llm_draft` model.
        draft_window: tokens of a request that the second engine attends to; none: all.
        accepts_by_logits: whether both engines give their logits, and drafts are accepted by them.
        pipeline_parallel: whether such engines can be split into stages.
    """

    heads: Heads[S] | None = None
    states_draft_length: bool = False
    draft_length_findings: Callable[[S, int, str], Iterator[Finding]] | None = None
    parameters: Callable[[S], Mapping[str, str]] = lambda section: {}
    draft_parameters: Callable[[S], Mapping[str, str]] = lambda section: {}
    draft_window: Callable[[S], int | None] = lambda section: None
    accepts_by_logits: Callable[[S], bool] = lambda section: False
    pipeline_parallel: bool = True


@dataclass(frozen=True)
class InLlmApi(Generic[S]):
    """A method on the LLM API.

    Attributes:
        decoding_types: `speculative_config.decoding_type`, by release line; empty: YAML cannot say the drafter.
        arguments: the rest of `speculative_config` that is the method's own.
        user_drafter: the block of the kit's own that its drafter is made from.
        beside: release lines that run the drafter beside the target's model, on the host: it needs the last step's
            tokens before the next step starts (features/speculative-decoding.md).
        beside_switch: key of `speculative_config` that, if false, puts the drafter of line A beside the target's model.
        has_probabilities: whether drafts can be accepted by their distribution (llm_args.py at 0004396 raises for an
            explicit use_rejection_sampling without).
        converted: release lines that load another layout than the published one, with the arguments that a converted
            checkpoint in a directory adds.
    """

    decoding_types: Mapping[LineName, str] = field(default_factory=lambda: MappingProxyType({}))
    arguments: Callable[[S, ReleaseLine], dict[str, Any]] = lambda section, line: {}
    user_drafter: Callable[[S], dict[str, Any]] | None = None
    beside: frozenset[LineName] = frozenset()
    beside_switch: str | None = None
    has_probabilities: Callable[[S], bool] = lambda section: True
    converted: Mapping[LineName, Callable[[S, Path], dict[str, Any]]] = field(
        default_factory=lambda: MappingProxyType({})
    )


@dataclass(frozen=True)
class Drafter:
    """What a drafter's checkpoint has to have in common with the target's.

    Attributes:
        kind: `model` has the target's tokens; `head` reads the target's hidden states.
        takes_padding: whether the vocabularies may differ by padding.
    """

    kind: Literal["model", "head"]
    takes_padding: bool = False


@dataclass(frozen=True)
class Method(Generic[S]):
    """One method.

    Attributes:
        section: its class of the spec.
        support: how it runs, or why it does not, by release line and runtime.
        draft_tokens: most tokens that one step of one request verifies besides its own.
        engines: what compiled engines need to know of it.
        llm_api: what the LLM API needs to know of it.
        drafter: what is asked of the drafter's checkpoint; none: nothing is compared.
        drafts_itself: the target's weights draft.
        tree: the token tree that its engine is built for.
        constraints: what a release or runtime cannot do of its section.
        checks: what is known to go wrong with its settings.
    """

    section: type[S]
    support: Support
    draft_tokens: Callable[[S], int] = own_length
    engines: InEngines[S] = field(default_factory=InEngines)
    llm_api: InLlmApi[S] = field(default_factory=InLlmApi)
    drafter: Drafter | None = None
    drafts_itself: bool = False
    tree: Tree[S] | None = None
    constraints: tuple[Check[S], ...] = ()
    checks: tuple[Check[S], ...] = ()


def with_weights(draft_length: int, directory: Path) -> dict[str, Any]:
    """What `speculative_config` says of every drafter that has weights of its own."""
    return {"max_draft_len": draft_length, "speculative_model_dir": str(directory)}


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def as_list(values: tuple[int, ...] | None) -> list[int] | None:
    """As YAML has it."""
    return None if values is None else list(values)
