"""The whole plan of a deployment on TensorRT-LLM: engines, what guided decoding needs, and the repository.

Example::

    resolved = resolve(spec)
    print(script(plan_steps(resolved, Path("deployments/llama3-8b-draft-trtllm.yaml")), LocalRunner()))
"""

from pathlib import Path

from build.plan.steps import Step
from build.trtllm.engines.commands import build_steps
from build.trtllm.repository.__main__ import collect_step
from build.trtllm.resolved import Resolved

_TOKENIZER_SCRIPT = "generate_xgrammar_tokenizer_info.py"


def plan_steps(resolved: Resolved, spec_path: Path) -> tuple[Step, ...]:
    """All steps, in order.

    Args:
        resolved: the deployment.
        spec_path: its file, which the last step reads.

    Raises:
        Refused: the deployment cannot be built. SpecError: the model does not say what it is.
    """
    steps = list(build_steps(resolved))
    info = None
    if resolved.runtime == "engines" and resolved.engine.guided_decoding is not None:
        info = resolved.workspace / "tokenizer-info"
        steps.append(_tokenizer_step(resolved, info))
    return (*steps, collect_step(resolved, spec_path, info))


def plan_directory(resolved: Resolved) -> Path:
    """Where the plan's records and logs lie."""
    return resolved.workspace / "plan"


def _tokenizer_step(resolved: Resolved, output: Path) -> Step:
    """XGrammar's description of the tokenizer, for the C++ backend (tensorrtllm_backend docs/guided_decoding.md)."""
    model = resolved.spec.target.model
    script = resolved.examples / _TOKENIZER_SCRIPT
    command = ("python3", str(script), f"--model_dir={model}", f"--output_dir={output}")
    return Step("describe-tokenizer", command, (model,), (output,), image=resolved.build_image)
