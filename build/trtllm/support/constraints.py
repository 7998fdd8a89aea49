"""What a cell of the table does not do: options of the spec that are refused before anything is built.

Each check takes one subject; `refusals` runs them all. Sources are named where a limit is not of the kit's making:
the examples' READMEs and converters of release 1.2.1 and earlier, `llm_args.py`, and the pull requests given.
"""

from collections.abc import Callable, Iterator

from build.repository import DRAFT_MODEL
from build.trtllm.engines.tools import OWN_BUILD_FLAGS, TRTLLM_BUILD, problem_of
from build.trtllm.methods.trees import tree_of
from build.trtllm.releases import Refused
from build.trtllm.resolved import FROM_OUTSIDE, Resolved
from build.trtllm.support.policies import policy_refusals
from deployments.speculation import (
    DraftModel,
    Eagle3,
    Mtp,
    SuffixAutomaton,
    WindowedSelfDrafting,
)

# examples/eagle/README.md; examples/redrafter/convert_checkpoint.py has no --pp_size.
_NO_PIPELINE = frozenset({"eagle", "redrafter"})

# llm_args.py at 0004396: an explicit use_rejection_sampling raises for these.
_EXACT_MATCH = frozenset({"prompt_lookup", "suffix_automaton"})


def refusals(resolved: Resolved) -> Iterator[Refused]:
    """Every option that cannot be had, with the reason and the nearest that works."""
    for check in _CHECKS:
        yield from check(resolved)


def _parallelism(resolved: Resolved) -> Iterator[Refused]:
    engine, method = resolved.engine, resolved.method
    if resolved.runtime == "engines" and method in _NO_PIPELINE and engine.pipeline_parallel > 1:
        yield Refused(
            f"{method} engines have no pipeline parallelism (engine.pipeline_parallel: {engine.pipeline_parallel})",
            f"pipeline_parallel: 1 with tensor_parallel: {engine.tensor_parallel * engine.pipeline_parallel}",
        )
    draft = engine.draft.tensor_parallel
    if resolved.runtime == "llm_api" and draft not in (None, engine.tensor_parallel):
        yield Refused(
            f"the LLM API runs the draft with the target's tensor parallelism (TensorRT-LLM pull request #11838 asked "
            f"for more and was closed), not with engine.draft.tensor_parallel: {draft}",
            "no engine.draft.tensor_parallel" + _or_engines(resolved),
        )


def _draft_section(resolved: Resolved) -> Iterator[Refused]:
    given = sorted(resolved.engine.draft.model_dump(exclude_none=True))
    if not given or resolved.cell.drafting == "draft_engine":
        return
    if resolved.runtime == "llm_api" and given == ["tensor_parallel"]:
        return
    yield Refused(
        f"engine.draft ({', '.join(given)}) is for a second engine, and {resolved.method} with {resolved.runtime} "
        "has none",
        "no engine.draft" + _or_engines(resolved),
    )


def _or_engines(resolved: Resolved) -> str:
    return ", or runtime: engines" if resolved.line.name == "A" and resolved.method == "draft_model" else ""


def _quantization(resolved: Resolved) -> Iterator[Refused]:
    quantization = resolved.engine.quantization
    if quantization == "none":
        return
    if resolved.runtime == "llm_api":
        yield Refused(
            "the LLM API takes a checkpoint as it is, and quantises nothing that the kit could ask for "
            f"(engine.quantization: {quantization})",
            "quantization: none, with a checkpoint that Model Optimizer has quantised as target.model",
        )
    if resolved.method == "eagle":
        yield Refused(
            "EAGLE engines take a quantised target only with its head in one Model Optimizer checkpoint "
            f"(engine.quantization: {quantization})",
            "quantization: none",
        )
    if resolved.method == "redrafter" and quantization == "int4_awq":
        yield Refused(
            "ReDrafter is known to work on fp8 targets, not on int4_awq ones", "quantization: fp8 or none"
        )


def _kv_cache(resolved: Resolved) -> Iterator[Refused]:
    engine = resolved.engine
    if resolved.runtime == "engines" and engine.kv_cache.dtype == "fp8" and engine.quantization == "none":
        yield Refused(
            "engines take the scales of an fp8 KV cache from calibration, which only a quantised checkpoint has "
            "(engine.kv_cache.dtype: fp8)",
            "quantization: fp8, or kv_cache.dtype: auto",
        )
    if resolved.cell.drafting in FROM_OUTSIDE and not engine.kv_cache.block_reuse:
        yield Refused(
            "drafts from outside the target's engine need the KV cache of the call before "
            "(engine.kv_cache.block_reuse: false)",
            "kv_cache.block_reuse: true",
        )


def _long_calls(resolved: Resolved) -> Iterator[Refused]:
    """Prompt and output so far are the prompt of every call, which without chunked context must fit into one step.

    The C++ backend takes prompts of min(max_seq_len - 1, max_num_tokens) tokens, and shortens drafts beyond.
    """
    engine = resolved.engine
    if resolved.cell.drafting not in FROM_OUTSIDE or engine.max_num_tokens >= engine.max_sequence_length:
        return
    models = ["tensorrt_llm", *([DRAFT_MODEL] if resolved.cell.drafting == "draft_engine" else [])]
    whole = [name for name in models if not chunks_context(resolved, name)]
    if whole:
        yield Refused(
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


def _method_options(resolved: Resolved) -> Iterator[Refused]:
    """Options of single methods that a line or runtime lacks."""
    speculation, line = resolved.speculation, resolved.line
    if isinstance(speculation, DraftModel) and speculation.use_draft_logits and resolved.runtime == "llm_api":
        yield Refused(
            "the LLM API takes no draft logits (speculation.use_draft_logits)", _without_logits(resolved)
        )
    if isinstance(speculation, Eagle3) and speculation.dynamic_tree is not None and line.name == "A":
        yield Refused(
            "EAGLE-3's dynamic tree came with 1.3 (pull request #12062)", "no dynamic_tree, or line: B"
        )
    if (
        isinstance(speculation, (Eagle3, Mtp))
        and speculation.suffix_automaton is not None
        and line.name == "A"
    ):
        yield Refused("suffix automata came with 1.3", "no suffix_automaton, or line: B")
    if isinstance(speculation, WindowedSelfDrafting) and speculation.sink_tokens:
        yield Refused(
            "trtllm-build of 1.2.1 refuses StreamingLLM, because the attention sink did not survive the sliding "
            f"window's new KV cache (speculation.sink_tokens: {speculation.sink_tokens})",
            "sink_tokens: 0",
        )
    if isinstance(speculation, SuffixAutomaton):
        yield from _suffix_automaton(resolved, speculation)


def _without_logits(resolved: Resolved) -> str:
    return "use_draft_logits: false" + _or_engines(resolved)


def _suffix_automaton(resolved: Resolved, speculation: SuffixAutomaton) -> Iterator[Refused]:
    batch = resolved.engine.max_batch_size
    size = speculation.global_pool_size
    if size is not None and size < batch:
        yield Refused(
            f"the global pool must hold all running requests: global_pool_size {size} is below max_batch_size {batch}",
            f"global_pool_size: {batch}",
        )


def _tree(resolved: Resolved) -> Iterator[Refused]:
    """The token tree of Medusa and EAGLE."""
    try:
        tree_of(resolved)
    except Refused as refusal:
        yield refusal


def _free_form(resolved: Resolved) -> Iterator[Refused]:
    """Free-form sections that the runtime does not read."""
    engine = resolved.engine
    if resolved.runtime == "engines" and engine.llm_args:
        yield Refused("engine.llm_args is for the LLM API, and this deployment runs engines", "build_flags")
    if resolved.runtime == "llm_api" and engine.build_flags:
        yield Refused("engine.build_flags is for trtllm-build, and the LLM API builds nothing", "llm_args")
    beams = engine.llm_args.get("max_beam_width", engine.build_flags.get("max_beam_width", 1))
    if resolved.method != "none" and str(beams) != "1":
        yield Refused(f"no method speculates on beams (max_beam_width: {beams})", "max_beam_width: 1")


def _build_flags(resolved: Resolved) -> Iterator[Refused]:
    """`engine.build_flags` against trtllm-build: known, not lost in 1.2.1, and not set by the spec already."""
    for flag, value in resolved.engine.build_flags.items():
        problem = problem_of(TRTLLM_BUILD, flag, value or None)
        if problem is not None:
            yield Refused(f"engine.build_flags: {problem}", f"no {flag}")
        if flag in OWN_BUILD_FLAGS:
            yield Refused(
                f"engine.build_flags: the kit sets --{flag} from {OWN_BUILD_FLAGS[flag]}", f"no {flag}"
            )


def _speculative_arguments(resolved: Resolved) -> Iterator[Refused]:
    """`engine.llm_args.speculative_config` beside what the kit writes there."""
    more = resolved.engine.llm_args.get("speculative_config")
    if more is None:
        return
    if resolved.method not in resolved.line.decoding_types or not isinstance(more, dict):
        yield Refused(
            f"{resolved.method} has no speculative_config that engine.llm_args could add to",
            "the speculation section",
        )
    if more.get("use_rejection_sampling") and (
        resolved.method in _EXACT_MATCH or getattr(resolved.speculation, "suffix_automaton", None) is not None
    ):
        yield Refused(
            "use_rejection_sampling needs the draft's probabilities, which n-grams and suffix automata have not",
            "use_rejection_sampling: false",
        )


_CHECKS: tuple[Callable[[Resolved], Iterator[Refused]], ...] = (
    _parallelism,
    _draft_section,
    _quantization,
    _kv_cache,
    _long_calls,
    policy_refusals,
    _method_options,
    _tree,
    _free_form,
    _build_flags,
    _speculative_arguments,
)
