"""From the spec's `speculation` section to the shape of the trees that a trained speculator drafts.

Each takes the section and the guesses below a node, level by level, where the checkpoint publishes them, and raises
`EngineError` where the section's `choices` are no tree.
"""

import math
from collections.abc import Sequence

from deployments.speculation import Choices as Paths
from deployments.speculation import DraftModel, Eagle, Eagle3, Medusa, MlpSpeculator
from engine.manifest import EngineError
from speculators.growth import Choices, Likeliest, TreeShape

# How likely a chain must be to be drafted on, if drafts are adaptive. With EAGLE-3 on SmolLM2-135M a level costs a
# tenth of a step, and a token that was accepted saves half of one; replaying 26 prompts, 0.2 to 0.4 are within 1 % of
# each other and 6 % faster than lengths that follow what was accepted lately.
_LIKELY = math.log(0.3)
# Guesses below a node of the kit's own Medusa trees, as in the published ones.
_MEDUSA_CHILDREN = 10
# Nodes of such a tree, for each head: more were hardly ever accepted from heads of small models.
_MEDUSA_NODES_PER_HEAD = 4


def check_depth(shape: TreeShape, levels: int | None, source: str) -> None:
    """Refuse trees that are deeper than a checkpoint drafts.

    Raises:
        EngineError: they are.
    """
    if levels is not None and shape.depth > levels:
        raise EngineError(
            f"speculation asks for {shape.depth} draft tokens in a row, but {source} gives {levels}"
        )


def least_likely(speculation: MlpSpeculator | Eagle3 | DraftModel) -> float:
    """Log-probability below which a chain is not drafted on."""
    return _LIKELY if speculation.adaptive else -math.inf


def mlp_shape(speculation: MlpSpeculator, top_k: Sequence[int] | None) -> TreeShape:
    """As many paths as asked for, each level with as many guesses as the checkpoint publishes."""
    length, paths = speculation.draft_length, speculation.candidates
    if paths == 1:
        return Likeliest.chain(length, least_likely(speculation))
    return Likeliest(length, tuple((top_k or ())[:length]), paths, paths * length)


def medusa_shape(speculation: Medusa, top_k: Sequence[int] | None) -> TreeShape:
    """The section's own tree, or the likeliest few nodes."""
    if speculation.choices is not None:
        return _published(speculation.choices)
    heads = speculation.num_heads
    return Likeliest(heads, (_MEDUSA_CHILDREN,) * heads, _MEDUSA_CHILDREN, _MEDUSA_NODES_PER_HEAD * heads)


def eagle_shape(speculation: Eagle, top_k: Sequence[int] | None) -> TreeShape:
    """The section's own tree, or EAGLE-2's."""
    if speculation.choices is not None:
        return _published(speculation.choices)
    depth, children = speculation.depth, speculation.max_non_leaves
    return Likeliest(depth, (children,) * depth, children, speculation.max_draft_tokens)


def eagle3_shape(speculation: Eagle3, top_k: Sequence[int] | None) -> TreeShape:
    """A chain, or EAGLE-2's tree."""
    length, tree = speculation.draft_length, speculation.dynamic_tree
    if tree is None:
        return Likeliest.chain(length, least_likely(speculation))
    return Likeliest(length, (tree.top_k,) * length, tree.top_k, tree.total or tree.top_k * length)


def _published(paths: Paths) -> TreeShape:
    try:
        return Choices(paths)
    except ValueError as error:
        raise EngineError(f"speculation.{error}") from None
