"""Build steps of line A: checkpoints, drafting heads, engines; one recipe a kind of drafter.

Checkpoints come from the converters of TensorRT-LLM's examples, or from its `quantize.py`; heads are added by the
kit's own converters (`build.converters`), because the examples' leave out rotary scaling, pad no vocabulary, and know
no Medusa heads without output matrices. The LLM API compiles nothing; its one step on line A is the conversion of an
EAGLE-3 drafter to the layout that 1.2.1 loads.

Example::

    for step in build_steps(resolve(spec)):
        print(step.shell())

Sources: READMEs of examples/draft_target_model, medusa, eagle, redrafter, lookahead and quantization.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from build.plan.steps import Step, interpreter
from build.trtllm.engines.families import Family, family_findings, family_of
from build.trtllm.engines.tools import QUANTIZE, TRTLLM_BUILD, Tool, problem_of
from build.trtllm.methods.record import Heads
from build.trtllm.methods.table import (
    accepts_by_logits,
    converted_drafter,
    draft_tokens,
    drafter_directory,
    method_of,
)
from build.trtllm.resolved import FROM_OUTSIDE, Resolved
from deployments.findings import Finding, require_none
from deployments.places import drafter_source


def build_steps(resolved: Resolved) -> tuple[Step, ...]:
    """All steps from the models to the engines, in order; for the LLM API, the one that converts its drafter, if any.

    Raises:
        UnsupportedDeployment: a model's family has no such engines, or its type is neither in the spec nor in the
            model's config.json.
    """
    if resolved.runtime == "llm_api":
        return _drafter_steps(resolved)
    require_none(compile_findings(resolved))
    target, draft = _target(resolved), _draft(resolved)
    heads = method_of(resolved).engines.heads
    steps, source = [target.checkpoint_step()], target.checkpoint
    if heads is not None:
        steps.append(_heads_step(resolved, target, heads))
        (source,) = steps[-1].outputs
    if draft is not None:
        steps += _draft_steps(resolved, target, draft)
    steps.append(target.engine_step(source, resolved.target_engine, _target_mode(resolved)))
    return tuple(steps)


def compile_findings(resolved: Resolved) -> Iterable[Finding]:
    """What the families of target and draft cannot do of a deployment on compiled engines."""
    models = [model for model in (_target(resolved), _draft(resolved)) if model is not None]
    found = (family_findings(resolved, model.directory, model.model_type) for model in models)
    return dict.fromkeys(finding for findings in found for finding in findings)


def _target(resolved: Resolved) -> "_Model":
    return _Model(resolved, "target", resolved.spec.target.model, resolved.spec.target.model_type)


def _draft(resolved: Resolved) -> "_Model | None":
    """The second engine's: a smaller model, or the target itself."""
    directory = drafter_directory(resolved.spec)
    if resolved.draft_engine is None or directory is None:
        return None
    own = not method_of(resolved).drafts_itself and (directory / "config.json").is_file()
    return _Model(resolved, "draft", directory, None if own else resolved.spec.target.model_type)


class _Model:
    """The target or the draft: its checkpoint and engine commands, with its own precision and parallelism."""

    def __init__(self, resolved: Resolved, role: str, directory: Path, model_type: str | None) -> None:
        engine, draft = resolved.engine, resolved.engine.draft
        self.resolved, self.role, self.directory, self.model_type = resolved, role, directory, model_type
        own = draft if role == "draft" else None
        self.quantization = (own and own.quantization) or engine.quantization
        self.tensor_parallel = (own and own.tensor_parallel) or engine.tensor_parallel
        self.pipeline_parallel = engine.pipeline_parallel if own is None else 1

    @property
    def family(self) -> Family:
        return family_of(self.directory, self.model_type)

    @property
    def layout(self) -> tuple[str, int, int]:
        """What decides its checkpoint, beside the weights."""
        return self.quantization, self.tensor_parallel, self.pipeline_parallel

    @property
    def checkpoint(self) -> Path:
        return self.resolved.workspace / f"{self.role}-checkpoint"

    @property
    def world_size(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    def checkpoint_step(self) -> Step:
        """Hugging Face layout to TensorRT-LLM's, quantised if the spec wants it."""
        quantized = self.quantization != "none"
        tool = QUANTIZE if quantized else self.family.converter
        flags = {
            "model_dir": str(self.directory),
            "output_dir": str(self.checkpoint),
            "dtype": self.resolved.engine.dtype,
            "tp_size": str(self.tensor_parallel),
            "pp_size": str(self.pipeline_parallel),
        }
        if quantized:
            flags["qformat"] = self.quantization
            if self.resolved.engine.kv_cache.dtype == "fp8":
                flags["kv_cache_dtype"] = "fp8"
            if self.resolved.engine.calibration_dataset is not None:
                flags["calib_dataset"] = self.resolved.engine.calibration_dataset
        else:
            flags["workers"] = str(self.world_size)
        return Step(
            name=f"{'quantize' if quantized else 'convert'}-{self.role}",
            command=(
                "python3",
                str(self.resolved.examples / tool.name.removeprefix("examples/")),
                *argv(tool, flags),
            ),
            inputs=(self.directory,),
            outputs=(self.checkpoint,),
            image=self.resolved.build_image,
        )

    def engine_step(self, checkpoint: Path, output: Path, mode: Mapping[str, str | None]) -> Step:
        """A checkpoint to an engine."""
        engine = self.resolved.engine
        # The kit's BLS sends prompt and output so far with every call, so its input may be a whole sequence.
        outside = self.resolved.support.drafting in FROM_OUTSIDE
        flags: dict[str, str | None] = {
            "checkpoint_dir": str(checkpoint),
            "output_dir": str(output),
            "max_batch_size": str(engine.max_batch_size),
            "max_input_len": str(engine.max_sequence_length if outside else engine.max_input_length),
            "max_seq_len": str(sequence_length(self.resolved, self.role)),
            "max_num_tokens": str(engine.max_num_tokens),
            "gemm_plugin": "auto",
            "use_paged_context_fmha": "enable",
            "workers": str(self.world_size),
        }
        flags |= mode
        flags |= {flag: value or None for flag, value in engine.build_flags.items()}
        return Step(
            name=f"build-{self.role}",
            command=(TRTLLM_BUILD.name, *argv(TRTLLM_BUILD, flags)),
            inputs=(checkpoint,),
            outputs=(output,),
            image=self.resolved.build_image,
        )


def sequence_length(resolved: Resolved, role: str = "target") -> int:
    """`--max_seq_len` of an engine.

    A target that drafts are sent to counts the longest draft beside prompt and output, whether a call has one or not
    (`LlmRequest::validate` in batch_manager/llmRequest.cpp), so it gets room for it.
    """
    length = resolved.engine.max_sequence_length
    outside = role == "target" and resolved.support.drafting in FROM_OUTSIDE
    return length + draft_tokens(resolved.speculation) if outside else length


def argv(tool: Tool, flags: Mapping[str, str | None]) -> tuple[str, ...]:
    """Flags as arguments, `--flag=value` or `--flag` (value None); each is one that the tool has.

    Raises:
        ValueError: the tool has no such flag, or does not take the value.
    """
    for flag, value in flags.items():
        problem = problem_of(tool, flag, value)
        if problem is not None:
            raise ValueError(problem)
    return tuple(f"--{flag}" if value is None else f"--{flag}={value}" for flag, value in flags.items())


def _target_mode(resolved: Resolved) -> dict[str, str | None]:
    """How the target's engine speculates: mode and draft tokens of a step."""
    if resolved.support.build_mode is None:
        return {}
    mode: dict[str, str | None] = {"speculative_decoding_mode": resolved.support.build_mode}
    if method_of(resolved).engines.states_draft_length:
        mode["max_draft_len"] = str(draft_tokens(resolved.speculation))
    return mode | _logits(resolved)


def _logits(resolved: Resolved) -> dict[str, str | None]:
    """Both engines give their logits when drafts are accepted by them."""
    return {"gather_generation_logits": None} if accepts_by_logits(resolved) else {}


def _draft_steps(resolved: Resolved, target: _Model, draft: _Model) -> list[Step]:
    """The second engine; one of the target is made from the same checkpoint where that is the same."""
    output = resolved.draft_engine
    assert output is not None
    if method_of(resolved).drafts_itself and draft.layout == target.layout:
        return [draft.engine_step(target.checkpoint, output, {})]
    return [draft.checkpoint_step(), draft.engine_step(draft.checkpoint, output, _logits(resolved))]


def _drafter_steps(resolved: Resolved) -> tuple[Step, ...]:
    """A drafter in the layout that the line loads. It is numpy's work alone, so it runs where the plan is run."""
    output, drafter = converted_drafter(resolved), drafter_source(resolved.speculation)
    if output is None or drafter is None:
        return ()
    target = resolved.spec.target.model
    command = (
        *(interpreter(), "-m", "build.converters", resolved.method),
        *(f"--drafter={drafter}", f"--target={target}", f"--output={output}"),
    )
    return (Step(f"convert-{resolved.method}", command, (drafter, target), (output,)),)


def _heads_step(resolved: Resolved, target: _Model, heads: Heads[Any]) -> Step:
    """Drafting heads added to the target's checkpoint by the kit's own converter."""
    drafter, output = (
        drafter_source(resolved.speculation),
        resolved.workspace / "target-with-heads-checkpoint",
    )
    assert drafter is not None
    return Step(
        name=f"add-{resolved.method}-heads",
        command=(
            *("python3", "-m", "build.converters", resolved.method),
            f"--drafter={drafter}",
            f"--target={target.checkpoint}",
            f"--output={output}",
            f"--tp-size={target.tensor_parallel}",
            f"--dtype={resolved.engine.dtype}",
            *heads.options(resolved.speculation),
        ),
        inputs=(drafter, target.checkpoint),
        outputs=(output,),
        image=resolved.build_image,
    )
