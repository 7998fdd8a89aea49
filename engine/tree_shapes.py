"""From the spec's `speculation` section to the shape of the trees that a trained speculator drafts."""

from collections.abc import Sequence

from deployments.speculation import Choices as Paths
from deployments.speculation import Eagle, Eagle3, Medusa, MlpSpeculator
from engine.manifest import EngineError
from speculators.growth import Choices, Likeliest, TreeShape

Trained = MlpSpeculator | Medusa | Eagle | Eagle3

# Guesses below a node of the kit's own Medusa trees, as in the published ones.
_MEDUSA_CHILDREN = 10
# Nodes of such a tree, for each head: more were hardly ever accepted from heads of small models.
_MEDUSA_NODES_PER_HEAD = 4


def tree_shape(speculation: Trained, top_k: Sequence[int] | None) -> TreeShape:
    """Which guesses are made.

    Args:
        speculation: the section.
        top_k: guesses below a node, level by level, where the checkpoint publishes them.

    Raises:
        EngineError: the section's `choices` are no tree.
    """
    if isinstance(speculation, MlpSpeculator):
        return _mlp_shape(speculation, top_k or ())
    if isinstance(speculation, Eagle3):
        return _eagle3_shape(speculation)
    if speculation.choices is not None:
        return _published(speculation.choices)
    if isinstance(speculation, Medusa):
        heads = speculation.num_heads
        total = _MEDUSA_NODES_PER_HEAD * heads
        return Likeliest(heads, (_MEDUSA_CHILDREN,) * heads, _MEDUSA_CHILDREN, total)
    children = speculation.max_non_leaves
    return Likeliest(
        speculation.depth, (children,) * speculation.depth, children, speculation.max_draft_tokens
    )


def _mlp_shape(speculation: MlpSpeculator, top_k: Sequence[int]) -> TreeShape:
    length, paths = speculation.draft_length, speculation.candidates
    if paths == 1:
        return Likeliest.chain(length)
    return Likeliest(length, tuple(top_k[:length]), paths, paths * length)


def _eagle3_shape(speculation: Eagle3) -> TreeShape:
    length, tree = speculation.draft_length, speculation.dynamic_tree
    if tree is None:
        return Likeliest.chain(length)
    return Likeliest(length, (tree.top_k,) * length, tree.top_k, tree.total or tree.top_k * length)


def _published(paths: Paths) -> TreeShape:
    try:
        return Choices(paths)
    except ValueError as error:
        raise EngineError(f"speculation.{error}") from None
