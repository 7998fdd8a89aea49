"""EAGLE-1 and EAGLE-2: a layer in the target's engine, which is built for the depth of one token tree."""

from collections.abc import Iterator, Mapping, Sequence

from build.trtllm.methods.record import Drafter, Heads, InEngines, Method, Tree, support
from build.trtllm.methods.trees import default_tree, depth, non_leaves, tree_findings
from build.trtllm.releases import not_in_line, went_with_engines
from build.trtllm.resolved import Resolved, Supported
from deployments.findings import Finding, Unsupported
from deployments.speculation import Choices, Eagle


def _tree(section: Eagle) -> Choices:
    return section.choices or default_tree(section.depth, section.max_draft_tokens, section.max_non_leaves)


def _tree_findings(section: Eagle) -> Iterator[Finding]:
    """EAGLE's own: the depth is exactly that of the engine, and few nodes of a level have children."""
    if not section.choices:
        if section.max_draft_tokens < section.depth:
            yield not_in_line(
                f"a tree of depth {section.depth} has at least {section.depth} nodes, more than the "
                f"{section.max_draft_tokens} allowed",
                f"depth: {section.max_draft_tokens}",
            )
        return
    yield from tree_findings(section.choices, section.max_draft_tokens)
    deep, widest = depth(section.choices), max(non_leaves(section.choices), default=0)
    if deep != section.depth:
        yield not_in_line(
            f"speculation.choices are {deep} deep, and the engine's depth is {section.depth}; EAGLE wants exactly the "
            "same (TensorRT-LLM, examples/eagle)",
            f"depth: {deep}",
        )
    if widest > section.max_non_leaves:
        yield not_in_line(
            f"speculation.choices has {widest} nodes with children on one level, and the engine is built for "
            f"{section.max_non_leaves}",
            f"max_non_leaves: {widest}",
        )


def _limits(choices: Choices) -> Mapping[str, int]:
    widest = max(non_leaves(choices), default=1)
    return {"depth": depth(choices), "max_draft_tokens": len(choices), "max_non_leaves": widest}


def _head_options(section: Eagle) -> Sequence[str]:
    return (
        f"--max-draft-length={section.max_draft_tokens}",
        f"--num-eagle-layers={section.depth}",
        f"--max-non-leaves-per-layer={section.max_non_leaves}",
    )


def _quantization(resolved: Resolved, section: Eagle) -> Iterator[Finding]:
    if resolved.engine.quantization != "none":
        yield not_in_line(
            "EAGLE engines take a quantised target only with its head in one Model Optimizer checkpoint "
            f"(engine.quantization: {resolved.engine.quantization})",
            "quantization: none",
        )


EAGLE = Method(
    section=Eagle,
    support=support(
        engines=Supported("in_model", "eagle", "eagle"),
        line_a=Unsupported(
            "the PyTorch backend does not load EAGLE-1 checkpoints", "runtime: engines, or method: eagle3"
        ),
        line_b=Unsupported(
            went_with_engines("EAGLE-1 and EAGLE-2"), "method: eagle3 with an EAGLE-3 head, or line: A"
        ),
    ),
    draft_tokens=lambda section: section.max_draft_tokens,
    # examples/eagle/README.md: no pipeline parallelism.
    engines=InEngines(heads=Heads(_head_options, ("llama", "mistral", "mixtral")), pipeline_parallel=False),
    drafter=Drafter("head"),
    tree=Tree(_tree, _tree_findings, _limits),
    constraints=(_quantization,),
)
