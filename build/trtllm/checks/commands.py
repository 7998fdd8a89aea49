"""The commands of the plan against what the deployment needs: draft lengths compiled into engines.

`build_flags` of the spec override what the kit sets, so what counts is what the commands say in the end.
"""

from collections.abc import Iterator, Sequence

from build.plan.steps import Step
from build.trtllm.methods.table import draft_tokens, method_of
from build.trtllm.resolved import Resolved
from deployments.findings import Finding


def command_findings(resolved: Resolved, steps: Sequence[Step]) -> Iterator[Finding]:
    """Findings about the step that compiles the target."""
    for step in steps:
        if step.command[0] != "trtllm-build" or resolved.target_engine not in step.outputs:
            continue
        flags = flags_of(step.command)
        yield from mode_findings(
            resolved, flags.get("speculative_decoding_mode"), f"the command of {step.name}"
        )
        length = flags.get("max_draft_len", "0")
        yield from length_findings(resolved, int(length), f"the command of {step.name}")


def flags_of(command: Sequence[str]) -> dict[str, str]:
    """Flags of a command line with their values, in both spellings: `--name=value` and `--name value`."""
    flags: dict[str, str] = {}
    name = None
    for word in command[1:]:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            flags[name] = value
        elif name is not None:
            flags[name] = word
            name = None
    return flags


def mode_findings(resolved: Resolved, mode: str | None, where: str) -> Iterator[Finding]:
    """The engine's speculative decoding mode against the method's."""
    wanted = resolved.support.build_mode
    if mode != wanted:
        yield Finding(
            "engine-of-another-method",
            "error",
            f"{where}: speculative_decoding_mode is {mode or 'none'}, {resolved.method} needs {wanted or 'none'}",
            "no speculative_decoding_mode in engine.build_flags, and an engine built from this spec",
            "TensorRT-LLM#2816",
        )


def length_findings(resolved: Resolved, length: int, where: str) -> Iterator[Finding]:
    """The engine's draft length against the method's; methods whose checkpoint carries it are not asked."""
    engines, needed = method_of(resolved).engines, draft_tokens(resolved.speculation)
    if not engines.states_draft_length:
        return
    if length == 0:
        yield Finding(
            "target-without-draft-length",
            "error",
            f"{where}: max_draft_len is 0, so every draft is refused at run time",
            f"max_draft_len {needed}, as drafthouse build sets it",
            "tensorrtllm_backend#473",
        )
    elif engines.draft_length_findings is not None:
        yield from engines.draft_length_findings(resolved.speculation, length, where)
    elif length < needed:
        yield Finding(
            "target-draft-length",
            "error",
            f"{where}: max_draft_len is {length}, below the {needed} tokens that a step drafts",
            f"max_draft_len {needed}, as drafthouse build sets it",
            "tensorrtllm_backend#473",
        )
