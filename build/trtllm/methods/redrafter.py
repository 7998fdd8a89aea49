"""ReDrafter: a recurrent head in the target's engine."""

from collections.abc import Iterator, Sequence

from build.trtllm.methods.record import Heads, InEngines, Method, support
from build.trtllm.releases import not_in_line, went_with_engines
from build.trtllm.resolved import Resolved, Supported
from deployments.findings import Finding, Unsupported
from deployments.speculation import Redrafter


def _head_options(section: Redrafter) -> Sequence[str]:
    beams = (f"--num-beams={section.num_beams}", f"--draft-length={section.draft_length}")
    return beams if section.greedy_search else (*beams, "--sampling")


def _quantization(resolved: Resolved, section: Redrafter) -> Iterator[Finding]:
    if resolved.engine.quantization == "int4_awq":
        yield not_in_line(
            "ReDrafter is known to work on fp8 targets, not on int4_awq ones", "quantization: fp8 or none"
        )


REDRAFTER = Method(
    section=Redrafter,
    support=support(
        engines=Supported("in_model", "explicit_draft_tokens", "redrafter"),
        line_a=Unsupported("the LLM API has no ReDrafter", "runtime: engines"),
        line_b=Unsupported(
            went_with_engines("ReDrafter"), "line: A, or method: eagle3 with a head trained for it"
        ),
    ),
    draft_tokens=lambda section: section.num_beams * section.draft_length,
    # REDRAFTER_MAP of examples/redrafter/convert_checkpoint.py, which has no --pp_size.
    engines=InEngines(heads=Heads(_head_options, ("llama", "qwen2")), pipeline_parallel=False),
    constraints=(_quantization,),
)
