"""The whole plan of a deployment on TensorRT-LLM: engines, what guided decoding needs, and the repository.

Example::

    resolved = resolve(spec)
    print(script(plan_steps(resolved, Path("deployments/llama3-8b-draft-trtllm.yaml")), LocalRunner()))
"""

from pathlib import Path

from build.plan.steps import Step, interpreter
from build.trtllm.engines.commands import build_steps
from build.trtllm.methods.table import converted_drafter
from build.trtllm.resolved import Resolved

_ROOT = Path(__file__).resolve().parents[2]
# Rooms whose code goes into a repository or decides what is in it.
_CODE = ("build", "deployments", "drafthouse", "engine", "model_repo", "speculators")
_TOKENIZER_SCRIPT = "generate_xgrammar_tokenizer_info.py"


def plan_steps(resolved: Resolved, spec_path: Path) -> tuple[Step, ...]:
    """All steps, in order.

    Args:
        resolved: the deployment.
        spec_path: its file, which the last step reads.

    Raises:
        UnsupportedDeployment: a model cannot be compiled.
    """
    steps = list(build_steps(resolved))
    info = None
    if resolved.runtime == "engines" and resolved.engine.guided_decoding is not None:
        info = resolved.workspace / "tokenizer-info"
        steps.append(_tokenizer_step(resolved, info))
    return (*steps, _repository_step(resolved, spec_path, info))


def plan_directory(resolved: Resolved) -> Path:
    """Where the plan's records and logs lie."""
    return resolved.workspace / "plan"


def _tokenizer_step(resolved: Resolved, output: Path) -> Step:
    """XGrammar's description of the tokenizer, for the C++ backend (tensorrtllm_backend docs/guided_decoding.md)."""
    model = resolved.spec.target.model
    script = resolved.examples / _TOKENIZER_SCRIPT
    command = ("python3", str(script), f"--model_dir={model}", f"--output_dir={output}")
    return Step("describe-tokenizer", command, (model,), (output,), image=resolved.build_image)


def _repository_step(resolved: Resolved, spec_path: Path, tokenizer_info: Path | None) -> Step:
    """Assembles the repository, after everything that it refers to has been built."""
    output = resolved.spec.serving.repository
    command = [
        *(interpreter(), "-m", "build.trtllm.repository", str(spec_path)),
        *(f"--line={resolved.line.name}", f"--output={output}"),
    ]
    inputs = [spec_path, *(_ROOT / room for room in _CODE)]
    if resolved.runtime == "engines":
        inputs += [engine for engine in (resolved.target_engine, resolved.draft_engine) if engine is not None]
    drafter = converted_drafter(resolved)
    if drafter is not None:
        inputs.append(drafter)
    if tokenizer_info is not None:
        command.append(f"--tokenizer-info={tokenizer_info}")
        inputs.append(tokenizer_info)
    return Step("collect", tuple(command), tuple(inputs), (output,))
