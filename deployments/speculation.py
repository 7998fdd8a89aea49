"""The spec's `speculation` section: one class a method, chosen by the key `method`.

Which method runs on which engine is decided where the engine is built; here stands what a method can be told.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from deployments.drafting import Speculation
from deployments.engines import Precision
from deployments.enhancer import SelfLookupEnhancer
from deployments.section import Section

_LENGTH = "Most tokens drafted in a row."
_CHECKPOINT = "Directory of the drafter's weights, in the method's published layout."
_DRAFTER = "The drafter: a directory in Hugging Face layout, or a hub id."
_LOOKUP = "Embedded engine: a lookup in the request's own text beside the drafter, used when its match is long enough."
_MASK = "Token that stands for what is to be drafted; none: the one that the checkpoint names."

Choices = tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]


class NoSpeculation(Section):
    """Token by token."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "draft_policy": "without a method nothing is drafted, so there is nothing to decide; give a method"
    }

    method: Literal["none"] = "none"

    def longest_draft(self, batch_size: int) -> int | None:
        """Nothing is drafted, however few run."""
        return 0

    @property
    def chain_length(self) -> None:
        """Nothing is drafted in turns."""


class Anpd(Speculation):
    """Adaptive n-gram parallel decoding: drafts from the request's own n-grams; nothing to train."""

    method: Literal["anpd"]
    draft_length: int = Field(7, ge=1, le=31, description="Most tokens drafted in a step (K).")
    ngram: int = Field(5, ge=2, le=16, description="Longest n-gram (N).")


class PromptLookup(Speculation):
    """TensorRT-LLM's `NGram`: the continuation of an earlier occurrence of the last tokens."""

    method: Literal["prompt_lookup"]
    draft_length: int = Field(5, ge=1, le=31, description=_LENGTH)
    ngram: int = Field(3, ge=1, le=16, description="Longest suffix that is looked up.")
    keep_all: bool = Field(True, description="Keep every continuation of an n-gram, not just one.")
    use_oldest: bool = Field(True, description="Draft the oldest continuation, not the newest.")
    public_pool: bool = Field(True, description="Share n-grams between requests.")


class SuffixAutomaton(Speculation):
    """Suffix decoding: what followed the text's end where it stood before. TensorRT-LLM's `SA`, vLLM's `suffix`."""

    method: Literal["suffix_automaton"]
    draft_length: int = Field(5, ge=1, le=31, description=_LENGTH)
    ngram: int = Field(-1, ge=-1, le=64, description="Longest suffix that is looked up; -1: any.")
    global_pool: bool = Field(
        False,
        description="Search other requests as well (embedded engine, vLLM: their answers). Their texts then shape each "
        "other's timing.",
    )
    global_pool_size: PositiveInt | None = Field(
        None, description="Requests in the global pool; none: embedded engine 1,000, vLLM 10,000."
    )
    texts: Path | None = Field(
        None,
        description="Embedded engine: texts of one's own that are searched, too: JSONL with `text`, or with "
        "conversations, of which the answers count; any other file is one text.",
    )

    @model_validator(mode="after")
    def _pool_and_suffix(self) -> "SuffixAutomaton":
        if self.ngram == 0:
            raise ValueError("ngram must be -1 (any length) or 1 to 64")
        if self.global_pool_size is not None and not self.global_pool:
            raise ValueError("global_pool_size needs global_pool: true")
        return self


class TokenRecycling(Speculation):
    """Token Recycling: trees of what the target found likely after a token before; nothing to train."""

    method: Literal["token_recycling"]
    max_draft_tokens: int = Field(12, ge=1, le=80, description="Nodes of the tree, at most.")
    candidates: int = Field(8, ge=1, le=32, description="Successors that are kept of each token.")
    shared: bool = Field(
        True, description="Requests learn from each other; off: each from its own steps alone."
    )


class DraftModel(Speculation):
    """A smaller model with the target's tokenizer."""

    method: Literal["draft_model"]
    model: Path = Field(description="The draft in Hugging Face layout (or, for TensorRT-LLM, a hub id).")
    draft_length: int = Field(5, ge=1, le=31, description=_LENGTH)
    precision: Precision | None = Field(
        None, description="Embedded engine: weights of the draft; none: fp32 for a target in fp32, else int8."
    )
    use_draft_logits: bool = Field(
        False, description="Engines: accept by the draft's distribution, not by equality of tokens."
    )
    suffix_automaton: SelfLookupEnhancer | None = Field(None, description=_LOOKUP)


class Medusa(Speculation):
    """Independent heads on the target's last hidden state."""

    method: Literal["medusa"]
    checkpoint: Path = Field(description="The heads, in the layout of the Medusa repository.")
    num_heads: int = Field(4, ge=1, le=16, description="Heads that are used, so tokens of a path.")
    choices: Choices | None = Field(
        None, description="Paths of the token tree, by ranks; none: the likeliest four nodes for each head."
    )
    suffix_automaton: SelfLookupEnhancer | None = Field(None, description=_LOOKUP)


class Eagle(Speculation):
    """EAGLE-1, and with a dynamic tree EAGLE-2: autoregression on features. Its engines decode greedily."""

    method: Literal["eagle"]
    checkpoint: Path = Field(description=_CHECKPOINT)
    depth: int = Field(4, ge=1, le=16, description="Depth of the tree (`num_eagle_layers`).")
    max_draft_tokens: int = Field(63, ge=1, le=256, description="Nodes of the tree, at most.")
    max_non_leaves: PositiveInt = Field(10, description="Nodes of one level that are expanded, at most.")
    choices: Choices | None = Field(None, description="Paths of the token tree; none: the kit's default.")


class DynamicTree(Section):
    """EAGLE-2's tree: the likeliest nodes of each step."""

    top_k: int = Field(10, ge=1, le=32, description="Children of a node.")
    total: PositiveInt | None = Field(None, description="Nodes in all; none: top_k times the draft length.")


class Eagle3(Speculation):
    """EAGLE-3: autoregression on fused features of three layers."""

    method: Literal["eagle3"]
    checkpoint: Path = Field(description=_CHECKPOINT)
    draft_length: int = Field(3, ge=1, le=31, description=_LENGTH)
    dynamic_tree: DynamicTree | None = None
    layers_to_capture: tuple[int, ...] | None = Field(
        None, description="Layers whose outputs are fused; none: those that the checkpoint names."
    )
    architecture: Literal["llama3", "mistral_large3"] = Field(
        "llama3", description="TensorRT-LLM: what the checkpoint's layer looks like."
    )
    suffix_automaton: SelfLookupEnhancer | None = None

    @model_validator(mode="after")
    def _tree_holds_a_path(self) -> "Eagle3":
        tree = self.dynamic_tree
        if tree is not None and tree.total is not None:
            most = tree.top_k * self.draft_length
            if not self.draft_length <= tree.total <= most:
                raise ValueError(
                    f"dynamic_tree.total must be between draft_length and top_k times it, {self.draft_length} to {most}"
                )
        return self


class PEagle(Speculation):
    """P-EAGLE: EAGLE-3 that drafts all its tokens in one pass, a mask standing for those before."""

    method: Literal["peagle"]
    checkpoint: Path = Field(description=_CHECKPOINT)
    draft_length: int = Field(5, ge=1, le=31, description=_LENGTH)
    layers_to_capture: tuple[int, ...] | None = Field(
        None, description="Layers whose outputs are fused; none: those that the checkpoint names."
    )
    suffix_automaton: SelfLookupEnhancer | None = Field(None, description=_LOOKUP)


class Redrafter(Speculation):
    """ReDrafter: a recurrent head with beam search."""

    method: Literal["redrafter"]
    checkpoint: Path = Field(description=_CHECKPOINT)
    num_beams: int = Field(5, ge=1, le=32, description="Beams of the search.")
    draft_length: int = Field(5, ge=1, le=31, description="Draft tokens of a beam.")
    greedy_search: bool = Field(True, description="Take the likeliest token; off: sampling.")


class Lookahead(Speculation):
    """Lookahead decoding: n-grams from a Jacobi window; nothing to train. TensorRT-LLM's engines decode it greedily."""

    method: Literal["lookahead"]
    window: int = Field(4, ge=2, le=256, description="Positions of the Jacobi window (W).")
    ngram: int = Field(3, ge=2, le=32, description="Length of an n-gram (N).")
    verification_set: int = Field(4, ge=1, le=256, description="N-grams verified in a step (G).")

    @property
    def max_draft_tokens(self) -> int:
        """Draft tokens of a step, for which an engine must be built exactly (TensorRT-LLM, examples/lookahead)."""
        return self.ngram - 2 + (self.window - 1 + self.verification_set) * (self.ngram - 1)


class WindowedSelfDrafting(Speculation):
    """MagicDec: the target drafts for itself with a window of its KV cache; for long contexts."""

    method: Literal["windowed"]
    draft_length: int = Field(4, ge=1, le=31, description=_LENGTH)
    window: PositiveInt = Field(512, description="Tokens that the draft attends to.")
    sink_tokens: int | None = Field(
        None,
        ge=0,
        description="First tokens that stay in the window; none: 4 on the embedded engine, 0 with TensorRT-LLM, "
        "whose engines have lost their attention sink.",
    )
    choice: Literal["window", "snapkv", "verified"] = Field(
        "window",
        description="Embedded engine: which blocks of the cache a draft reads: the newest, or those that the end of "
        "the prompt or the last verification attended to most.",
    )
    min_context: PositiveInt | None = Field(
        None,
        description="Embedded engine: shortest context that is drafted for; none: twice the window.",
    )
    lookup: int = Field(
        0,
        ge=0,
        le=15,
        description="Embedded engine: tokens that a lookup in the request's own text guesses ahead of each run on the "
        "window, as TriForce has a cheaper drafter in front; 0: none.",
    )

    @property
    def least_context(self) -> int:
        """Tokens of a context that the embedded engine drafts for, at least."""
        return 2 * self.window if self.min_context is None else self.min_context


class LowBit(Speculation):
    """The target drafts for itself with its weights in four bits, on its own KV cache, which QSpec shares likewise."""

    method: Literal["low_bit"]
    draft_length: int = Field(4, ge=1, le=31, description=_LENGTH)
    rank: int = Field(
        0,
        ge=0,
        le=1024,
        description="Rank of the matrices that give back what four bits lose of each layer (LQ-LoRA); 0: none.",
    )
    bits_per_weight: float | None = Field(
        None,
        gt=0,
        description="Bits that a weight of the layers may take on average, scales and least values counted: matrices "
        "whose outputs lose most in four bits (5 with these) are kept in eight instead, as many as that allows; "
        "none: 5.",
    )

    @model_validator(mode="after")
    def _bits_are_spent_once(self) -> "LowBit":
        if self.rank and self.bits_per_weight is not None:
            raise ValueError("rank and bits_per_weight both give back what four bits lose; give one of them")
        return self


class Mtp(Speculation):
    """Multi-token prediction layers that the target was trained with."""

    method: Literal["mtp"]
    draft_length: int = Field(1, ge=1, le=31, description=_LENGTH)
    suffix_automaton: SelfLookupEnhancer | None = None


class Pard(Speculation):
    """PARD: a parallel draft model."""

    method: Literal["pard"]
    model: Path = Field(description=_DRAFTER)
    draft_length: int = Field(4, ge=1, le=31, description=_LENGTH)
    mask_token_id: int | None = Field(None, ge=0, description=_MASK)
    suffix_automaton: SelfLookupEnhancer | None = None


class DFlash(Speculation):
    """DFlash: block diffusion drafting."""

    method: Literal["dflash"]
    model: Path = Field(description=_DRAFTER)
    draft_length: int = Field(8, ge=1, le=31, description=_LENGTH)
    mask_token_id: int | None = Field(None, ge=0, description=_MASK)
    target_layer_ids: tuple[int, ...] | None = Field(
        None, description="Layers of the target that are read; none: those that the checkpoint names."
    )


class MlpSpeculator(Speculation):
    """Multi-stage head that sees the target's hidden state and the tokens drafted so far."""

    method: Literal["mlp_speculator"]
    checkpoint: Path = Field(description=_CHECKPOINT)
    draft_length: int = Field(3, ge=1, le=31, description=_LENGTH)
    candidates: int = Field(
        1,
        ge=1,
        le=32,
        description="Paths of the token tree, from the checkpoint's `top_k_tokens_per_head`; 1: a chain.",
    )
    suffix_automaton: SelfLookupEnhancer | None = Field(None, description=_LOOKUP)


class PlannedSpeculation(Section):
    """Embedded engine: as a plan says that `drafthouse plan` wrote, with the methods of the deployments it names."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "draft_policy": "the plan decides how much is drafted; give plan, or a method with draft_policy"
    }

    method: Literal["plan"] = "plan"
    plan: Path = Field(description="The plan, `runs/plan/NAME/plan.json`.")
    calibrate: bool = Field(
        False,
        description="Measure what steps and drafts cost when the engine starts, in less than ten seconds, instead of "
        "going by the plan's costs: serves plans of other machines.",
    )

    def longest_draft(self, batch_size: int) -> None:
        """The plan says it."""

    @property
    def chain_length(self) -> None:
        """Its deployments say it."""


def _method(value: Any) -> str | None:
    if isinstance(value, dict):
        found: str | None = value.get("method", "plan" if "plan" in value else "none")
        return found
    return getattr(value, "method", None)


AnySpeculation = Annotated[
    Annotated[NoSpeculation, Tag("none")]
    | Annotated[PlannedSpeculation, Tag("plan")]
    | Annotated[Anpd, Tag("anpd")]
    | Annotated[PromptLookup, Tag("prompt_lookup")]
    | Annotated[SuffixAutomaton, Tag("suffix_automaton")]
    | Annotated[TokenRecycling, Tag("token_recycling")]
    | Annotated[DraftModel, Tag("draft_model")]
    | Annotated[Medusa, Tag("medusa")]
    | Annotated[Eagle, Tag("eagle")]
    | Annotated[Eagle3, Tag("eagle3")]
    | Annotated[PEagle, Tag("peagle")]
    | Annotated[Redrafter, Tag("redrafter")]
    | Annotated[Lookahead, Tag("lookahead")]
    | Annotated[WindowedSelfDrafting, Tag("windowed")]
    | Annotated[LowBit, Tag("low_bit")]
    | Annotated[Mtp, Tag("mtp")]
    | Annotated[Pard, Tag("pard")]
    | Annotated[DFlash, Tag("dflash")]
    | Annotated[MlpSpeculator, Tag("mlp_speculator")],
    Discriminator(_method),
]
