"""Facts of a speculation section that several checks need: how many tokens a step drafts, where the drafter lies."""

from pathlib import Path

from build.trtllm.methods.trees import MEDUSA_NODES
from deployments.places import drafter_source
from deployments.spec import DeploymentSpec
from deployments.speculation import (
    AnySpeculation,
    Eagle,
    Eagle3,
    Lookahead,
    Medusa,
    NoSpeculation,
    Redrafter,
    WindowedSelfDrafting,
)


def draft_tokens(speculation: AnySpeculation) -> int:
    """Most tokens that one step of one request verifies besides its own; 0 without speculation."""
    if isinstance(speculation, NoSpeculation):
        return 0
    if isinstance(speculation, Medusa):
        return len(speculation.choices) if speculation.choices else MEDUSA_NODES
    if isinstance(speculation, Eagle):
        return speculation.max_draft_tokens
    if isinstance(speculation, Lookahead):
        return speculation.max_draft_tokens
    if isinstance(speculation, Redrafter):
        return speculation.num_beams * speculation.draft_length
    if isinstance(speculation, Eagle3) and speculation.dynamic_tree is not None:
        tree = speculation.dynamic_tree
        return tree.total or tree.top_k * speculation.draft_length
    return speculation.draft_length


def drafter_directory(spec: DeploymentSpec) -> Path | None:
    """Where the weights lie that draft; None if there are none besides the target's."""
    if isinstance(spec.speculation, WindowedSelfDrafting):
        return spec.target.model
    return drafter_source(spec.speculation)
