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

from collections.abc import Mapping
from pathlib import Path

from build.plan.steps import Step, interpreter
from build.trtllm.engines.families import Family, family_of
from build.trtllm.engines.tools import QUANTIZE, TRTLLM_BUILD, Tool, problem_of
from build.trtllm.methods.drafts import draft_tokens
from build.trtllm.methods.trees import tree_of
from build.trtllm.releases import Refused
from build.trtllm.repository.engine_parameters import draft_logits
from build.trtllm.resolved import FROM_OUTSIDE, Resolved
from deployments.speculation import (
    Anpd,
    DraftModel,
    Eagle,
    Eagle3,
    Lookahead,
    Medusa,
    PromptLookup,
    Redrafter,
    WindowedSelfDrafting,
)


def build_steps(resolved: Resolved) -> tuple[Step, ...]:
    """All steps from the models to the engines, in order; for the LLM API, the one that converts its drafter, if any.

    Raises:
        Refused: the model's family has no such engines, or the token tree does not fit.
        SpecError: the model type is neither in the spec nor in the model's config.json.
    """
    if resolved.runtime == "llm_api":
        return _drafter_steps(resolved)
    target = _Model(resolved, "target", resolved.spec.target.model, resolved.spec.target.model_type)
    steps = [target.checkpoint_step()]
    if resolved.method in _HEADS:
        steps.append(_heads_step(resolved, target))
    if resolved.draft_engine is not None:
        steps += _draft_steps(resolved, target)
    source = _with_heads(resolved) if resolved.method in _HEADS else target.checkpoint
    steps.append(target.engine_step(source, resolved.target_engine, _target_mode(resolved)))
    return tuple(steps)


class _Model:
    """The target or the draft: its checkpoint and engine commands, with its own precision and parallelism."""

    def __init__(self, resolved: Resolved, role: str, directory: Path, model_type: str | None) -> None:
        engine, draft = resolved.engine, resolved.engine.draft
        self.resolved, self.role, self.directory = resolved, role, directory
        self.family = _family(resolved, directory, model_type)
        own = draft if role == "draft" else None
        self.quantization = (own and own.quantization) or engine.quantization
        self.tensor_parallel = (own and own.tensor_parallel) or engine.tensor_parallel
        self.pipeline_parallel = engine.pipeline_parallel if own is None else 1

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
        outside = self.resolved.cell.drafting in FROM_OUTSIDE
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
    outside = role == "target" and resolved.cell.drafting in FROM_OUTSIDE
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


def _family(resolved: Resolved, directory: Path, model_type: str | None) -> Family:
    family = family_of(directory, model_type, resolved.method)
    parallel = resolved.engine.pipeline_parallel
    if parallel > 1 and not family.pipeline_parallel:
        raise Refused(
            f"{family.converter.name} has no pipeline parallelism (engine.pipeline_parallel: {parallel})",
            f"pipeline_parallel: 1 with tensor_parallel: {resolved.engine.tensor_parallel * parallel}",
        )
    return family


def _target_mode(resolved: Resolved) -> dict[str, str | None]:
    """How the target's engine speculates: mode and draft tokens of a step."""
    if resolved.cell.build_mode is None:
        return {}
    mode: dict[str, str | None] = {"speculative_decoding_mode": resolved.cell.build_mode}
    speculation = resolved.speculation
    if isinstance(speculation, (DraftModel, WindowedSelfDrafting, Anpd, PromptLookup)):
        mode["max_draft_len"] = str(speculation.draft_length)
    elif isinstance(speculation, Lookahead):
        mode["max_draft_len"] = str(speculation.max_draft_tokens)
    return mode | _logits(resolved)


def _logits(resolved: Resolved) -> dict[str, str | None]:
    """Both engines give their logits when drafts are accepted by them."""
    return {"gather_generation_logits": None} if draft_logits(resolved) else {}


def _draft_steps(resolved: Resolved, target: _Model) -> list[Step]:
    """The second engine: a smaller model, or the target itself, from the same checkpoint where that is the same."""
    speculation, output = resolved.speculation, resolved.draft_engine
    assert output is not None
    if isinstance(speculation, DraftModel):
        declared = None if (speculation.model / "config.json").is_file() else resolved.spec.target.model_type
        draft = _Model(resolved, "draft", speculation.model, declared)
    else:
        draft = _Model(resolved, "draft", target.directory, resolved.spec.target.model_type)
        if _layout(draft) == _layout(target):
            return [draft.engine_step(target.checkpoint, output, {})]
    return [draft.checkpoint_step(), draft.engine_step(draft.checkpoint, output, _logits(resolved))]


def _layout(model: _Model) -> tuple[str, int, int]:
    return model.quantization, model.tensor_parallel, model.pipeline_parallel


def _drafter_steps(resolved: Resolved) -> tuple[Step, ...]:
    """An EAGLE-3 drafter as line A loads it. It is numpy's work alone, so it runs where the plan is run."""
    output, speculation = resolved.converted_drafter, resolved.speculation
    if output is None or not isinstance(speculation, Eagle3):
        return ()
    target = resolved.spec.target.model
    command = (
        *(interpreter(), "-m", "build.converters", "eagle3"),
        *(f"--drafter={speculation.checkpoint}", f"--target={target}", f"--output={output}"),
    )
    return (Step("convert-eagle3", command, (speculation.checkpoint, target), (output,)),)


_HEADS = frozenset({"medusa", "eagle", "redrafter"})


def _with_heads(resolved: Resolved) -> Path:
    return resolved.workspace / "target-with-heads-checkpoint"


def _heads_step(resolved: Resolved, target: _Model) -> Step:
    """Drafting heads added to the target's checkpoint by the kit's own converter."""
    speculation, output = resolved.speculation, _with_heads(resolved)
    assert isinstance(speculation, (Medusa, Eagle, Redrafter))
    return Step(
        name=f"add-{speculation.method}-heads",
        command=(
            *("python3", "-m", "build.converters", speculation.method),
            f"--drafter={speculation.checkpoint}",
            f"--target={target.checkpoint}",
            f"--output={output}",
            f"--tp-size={target.tensor_parallel}",
            f"--dtype={resolved.engine.dtype}",
            *_head_options(resolved),
        ),
        inputs=(speculation.checkpoint, target.checkpoint),
        outputs=(output,),
        image=resolved.build_image,
    )


def _head_options(resolved: Resolved) -> tuple[str, ...]:
    speculation, tree = resolved.speculation, tree_of(resolved)
    if isinstance(speculation, Medusa):
        assert tree is not None
        nodes = max(len(tree), speculation.num_heads)
        return (f"--num-medusa-heads={speculation.num_heads}", f"--max-draft-length={nodes}")
    if isinstance(speculation, Eagle):
        return (
            f"--max-draft-length={speculation.max_draft_tokens}",
            f"--num-eagle-layers={speculation.depth}",
            f"--max-non-leaves-per-layer={speculation.max_non_leaves}",
        )
    assert isinstance(speculation, Redrafter)
    beams = (f"--num-beams={speculation.num_beams}", f"--draft-length={speculation.draft_length}")
    return beams if speculation.greedy_search else (*beams, "--sampling")
