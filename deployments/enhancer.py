"""The section `suffix_automaton` beside a trained drafter: a lookup in the request's own text."""

from typing import Any

from pydantic import Field, PositiveInt

from deployments.section import Section


class SelfLookupEnhancer(Section):
    """A lookup in the request's own text beside a trained drafter: used when its match is long enough."""

    threshold: PositiveInt = Field(4, description="Shortest match that replaces the drafter's proposal.")
    global_pool: bool = Field(False, description="Search other requests as well.")
    chain_length: int | None = Field(
        None,
        ge=1,
        le=31,
        description="Embedded engine: most tokens of a draft that lookup and drafter make in turns, each going on "
        "where the other ends, the drafter among its first draft_length tokens; none: no turns.",
    )


def check_chain(drafter: Any, length: int) -> None:
    """See that a drafter's section says nothing else of drafts that are chains of `length` tokens.

    Raises:
        ValueError: it does.
    """
    own = getattr(drafter, "draft_length", getattr(drafter, "num_heads", 1))
    if length < own:
        raise ValueError(
            f"suffix_automaton.chain_length {length} is that of a whole draft, so not less than the {own} tokens that "
            "the drafter drafts"
        )
    for key in ("dynamic_tree", "choices"):
        if getattr(drafter, key, None) is not None:
            raise ValueError(f"suffix_automaton.chain_length makes chains: give no {key}")
    if getattr(drafter, "candidates", 1) > 1:
        raise ValueError("suffix_automaton.chain_length makes chains: candidates must be 1")
