"""Medusa: heads in the target's engine, which is built for one token tree."""

from collections.abc import Iterator, Sequence

from build.trtllm.methods.record import Heads, InEngines, Method, Tree, support
from build.trtllm.methods.suffix_automaton import no_enhancer
from build.trtllm.methods.trees import default_tree, depth, tree_findings
from build.trtllm.releases import not_in_line, went_with_engines
from build.trtllm.resolved import Supported
from deployments.findings import Finding, Unsupported
from deployments.speculation import Choices, Medusa

MOST_NODES = 63


def _tree(section: Medusa) -> Choices:
    return section.choices or default_tree(section.num_heads, MOST_NODES, MOST_NODES)


def _tree_findings(section: Medusa) -> Iterator[Finding]:
    if not section.choices:
        return
    yield from tree_findings(section.choices, MOST_NODES)
    deep = depth(section.choices)
    if deep > section.num_heads:
        yield not_in_line(
            f"speculation.choices are {deep} deep, and {section.num_heads} Medusa heads see no further than their "
            "number",
            f"num_heads: {deep}, or choices of depth {section.num_heads}",
        )


def _head_options(section: Medusa) -> Sequence[str]:
    nodes = max(len(_tree(section)), section.num_heads)
    return f"--num-medusa-heads={section.num_heads}", f"--max-draft-length={nodes}"


MEDUSA = Method(
    section=Medusa,
    support=support(
        engines=Supported("in_model", "medusa", "medusa"),
        line_a=Unsupported("the LLM API of 1.2.1 has Medusa for compiled engines only", "runtime: engines"),
        line_b=Unsupported(
            went_with_engines("Medusa"), "line: A, or method: eagle3 with a head trained for it"
        ),
    ),
    draft_tokens=lambda section: len(section.choices) if section.choices else MOST_NODES,
    # Model types of examples/medusa/convert_checkpoint.py.
    engines=InEngines(heads=Heads(_head_options, ("llama", "mistral", "mixtral", "qwen2"))),
    tree=Tree(_tree, _tree_findings, lambda choices: {"num_heads": depth(choices)}),
    constraints=(no_enhancer,),
)
