"""What a release or a runtime does not do: settings of the spec that cannot be had, found before anything is built.

Each check takes one subject; `constraint_findings` runs them all, and those of the method. Sources are named where a
constraint is not of the kit's making: the examples' READMEs and converters of release 1.2.1 and earlier,
`llm_args.py`, and the pull requests given.
"""

from collections.abc import Callable, Iterator

from build.triton.tensors import DRAFT_MODEL
from build.trtllm.engines.tools import OWN_BUILD_FLAGS, TRTLLM_BUILD, problem_of
from build.trtllm.methods.table import method_of
from build.trtllm.releases import not_in_line
from build.trtllm.resolved import FROM_OUTSIDE, Resolved, Supported
from build.trtllm.support.policies import policy_findings
from deployments.findings import Finding


def constraint_findings(resolved: Resolved) -> Iterator[Finding]:
    """Every setting that cannot be had, with the reason and the nearest that works."""
    for check in _CHECKS:
        yield from check(resolved)
    method = method_of(resolved)
    for constraint in method.constraints:
        yield from constraint(resolved, resolved.speculation)
    if method.tree is not None:
        yield from method.tree.findings(resolved.speculation)


def _parallelism(resolved: Resolved) -> Iterator[Finding]:
    engine, split = resolved.engine, method_of(resolved).engines.pipeline_parallel
    if resolved.runtime == "engines" and not split and engine.pipeline_parallel > 1:
        yield not_in_line(
            f"{resolved.method} engines have no pipeline parallelism (engine.pipeline_parallel: "
            f"{engine.pipeline_parallel})",
            f"pipeline_parallel: 1 with tensor_parallel: {engine.tensor_parallel * engine.pipeline_parallel}",
        )
    draft = engine.draft.tensor_parallel
    if resolved.runtime == "llm_api" and draft not in (None, engine.tensor_parallel):
        yield not_in_line(
            f"the LLM API runs the draft with the target's tensor parallelism (TensorRT-LLM pull request #11838 asked "
            f"for more and was closed), not with engine.draft.tensor_parallel: {draft}",
            "no engine.draft.tensor_parallel" + _or_engines(resolved),
        )


def _draft_section(resolved: Resolved) -> Iterator[Finding]:
    given = sorted(resolved.engine.draft.model_dump(exclude_none=True))
    if not given or resolved.support.drafting == "draft_engine":
        return
    if resolved.runtime == "llm_api" and given == ["tensor_parallel"]:
        return
    yield not_in_line(
        f"engine.draft ({', '.join(given)}) is for a second engine, and {resolved.method} with {resolved.runtime} "
        "has none",
        "no engine.draft" + _or_engines(resolved),
    )


def _or_engines(resolved: Resolved) -> str:
    """What a remedy adds where compiled engines have a second engine for the method."""
    there = method_of(resolved).support["A", "engines"]
    second = isinstance(there, Supported) and there.drafting == "draft_engine"
    return ", or runtime: engines" if resolved.line.name == "A" and second else ""


def _quantization(resolved: Resolved) -> Iterator[Finding]:
    quantization = resolved.engine.quantization
    if quantization == "none":
        return
    if resolved.runtime == "llm_api":
        yield not_in_line(
            "the LLM API takes a checkpoint as it is, and quantises nothing that the kit could ask for "
            f"(engine.quantization: {quantization})",
            "quantization: none, with a checkpoint that Model Optimizer has quantised as target.model",
        )


def _kv_cache(resolved: Resolved) -> Iterator[Finding]:
    engine = resolved.engine
    if resolved.runtime == "engines" and engine.kv_cache.dtype == "fp8" and engine.quantization == "none":
        yield not_in_line(
            "engines take the scales of an fp8 KV cache from calibration, which only a quantised checkpoint has "
            "(engine.kv_cache.dtype: fp8)",
            "quantization: fp8, or kv_cache.dtype: auto",
        )
    if resolved.support.drafting in FROM_OUTSIDE and not engine.kv_cache.block_reuse:
        yield not_in_line(
            "drafts from outside the target's engine need the KV cache of the call before "
            "(engine.kv_cache.block_reuse: false)",
            "kv_cache.block_reuse: true",
        )


def _long_calls(resolved: Resolved) -> Iterator[Finding]:
    """Prompt and output so far are the prompt of every call, which without chunked context must fit into one step.

    The C++ backend takes prompts of min(max_seq_len - 1, max_num_tokens) tokens, and shortens drafts beyond.
    """
    engine = resolved.engine
    if resolved.support.drafting not in FROM_OUTSIDE or engine.max_num_tokens >= engine.max_sequence_length:
        return
    models = ["tensorrt_llm", *([DRAFT_MODEL] if resolved.support.drafting == "draft_engine" else [])]
    whole = [name for name in models if not chunks_context(resolved, name)]
    if whole:
        yield not_in_line(
            f"{resolved.method} sends prompt and output so far with every call, up to engine.max_sequence_length "
            f"{engine.max_sequence_length} tokens, and without chunked context {' and '.join(whole)} can take no more "
            f"than a step does (engine.max_num_tokens: {engine.max_num_tokens})",
            f"max_num_tokens: {engine.max_sequence_length}, or engine.triton_parameters with "
            f'enable_chunked_context: "true" for {" and ".join(models)}',
        )


def chunks_context(resolved: Resolved, model: str) -> bool:
    """Whether a model on the C++ backend splits long prompts over steps."""
    parameters = resolved.engine.triton_parameters.get(model, {})
    return parameters.get("enable_chunked_context", "false").lower() in ("true", "1")


def _free_form(resolved: Resolved) -> Iterator[Finding]:
    """Free-form sections that the runtime does not read."""
    engine = resolved.engine
    if resolved.runtime == "engines" and engine.llm_args:
        yield not_in_line(
            "engine.llm_args is for the LLM API, and this deployment runs engines", "build_flags"
        )
    if resolved.runtime == "llm_api" and engine.build_flags:
        yield not_in_line(
            "engine.build_flags is for trtllm-build, and the LLM API builds nothing", "llm_args"
        )
    beams = engine.llm_args.get("max_beam_width", engine.build_flags.get("max_beam_width", 1))
    if resolved.method != "none" and str(beams) != "1":
        yield not_in_line(f"no method speculates on beams (max_beam_width: {beams})", "max_beam_width: 1")


def _build_flags(resolved: Resolved) -> Iterator[Finding]:
    """`engine.build_flags` against trtllm-build: known, not lost in 1.2.1, and not set by the spec already."""
    for flag, value in resolved.engine.build_flags.items():
        problem = problem_of(TRTLLM_BUILD, flag, value or None)
        if problem is not None:
            yield not_in_line(f"engine.build_flags: {problem}", f"no {flag}")
        if flag in OWN_BUILD_FLAGS:
            yield not_in_line(
                f"engine.build_flags: the kit sets --{flag} from {OWN_BUILD_FLAGS[flag]}", f"no {flag}"
            )


def _speculative_arguments(resolved: Resolved) -> Iterator[Finding]:
    """`engine.llm_args.speculative_config` beside what the kit writes there."""
    more = resolved.engine.llm_args.get("speculative_config")
    if more is None:
        return
    if not isinstance(more, dict):
        yield not_in_line(
            f"engine.llm_args.speculative_config is {more!r}, and not keys with values",
            "the speculation section",
        )
        return
    llm_api = method_of(resolved).llm_api
    if resolved.line.name not in llm_api.decoding_types:
        yield not_in_line(
            f"{resolved.method} has no speculative_config that engine.llm_args could add to",
            "the speculation section",
        )
    if more.get("use_rejection_sampling") and not llm_api.has_probabilities(resolved.speculation):
        yield not_in_line(
            "use_rejection_sampling needs the draft's probabilities, which n-grams and suffix automata have not",
            "use_rejection_sampling: false",
        )


_CHECKS: tuple[Callable[[Resolved], Iterator[Finding]], ...] = (
    _parallelism,
    _draft_section,
    _quantization,
    _kv_cache,
    _long_calls,
    policy_findings,
    _free_form,
    _build_flags,
    _speculative_arguments,
)
