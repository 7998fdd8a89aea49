"""The last step of a plan: assembles the Triton repository of a deployment on TensorRT-LLM.

It is a command of its own so that a plan can be printed, pasted and resumed as a whole; it needs no GPU and runs
where the plan is run, not in a container.

Example::

    python -m build.trtllm.repository deployments/llama3-8b-eagle3-trtllm.yaml --line=A --output=runs/model_repo
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from build.plan.steps import Step, interpreter
from build.trtllm.releases import LINES
from build.trtllm.repository.assemble import assemble_trtllm_repository
from build.trtllm.resolved import Resolved
from build.trtllm.support.matrix import resolve
from deployments.spec import SpecError, load_spec

_ROOT = Path(__file__).resolve().parents[3]
# Rooms whose code goes into a repository or decides what is in it.
_CODE = ("build", "deployments", "engine", "model_repo", "speculators")


def collect_step(resolved: Resolved, spec_path: Path, tokenizer_info: Path | None) -> Step:
    """The step that assembles the repository, after everything that it refers to has been built."""
    output = resolved.spec.serving.repository
    command = [
        *(interpreter(), "-m", "build.trtllm.repository", str(spec_path)),
        *(f"--line={resolved.line.name}", f"--output={output}"),
    ]
    inputs = [spec_path, *(_ROOT / room for room in _CODE)]
    if resolved.runtime == "engines":
        inputs += [engine for engine in (resolved.target_engine, resolved.draft_engine) if engine is not None]
    if resolved.converted_drafter is not None:
        inputs.append(resolved.converted_drafter)
    if tokenizer_info is not None:
        command.append(f"--tokenizer-info={tokenizer_info}")
        inputs.append(tokenizer_info)
    return Step("collect", tuple(command), tuple(inputs), (output,))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m build.trtllm.repository", description="Assemble a repository."
    )
    parser.add_argument("spec", type=Path, help="deployment spec")
    parser.add_argument(
        "--line", choices=LINES, required=True, help="release line, which the plan has found out"
    )
    parser.add_argument("--output", type=Path, required=True, help="where the repository goes")
    parser.add_argument("--tokenizer-info", type=Path, help="directory of XGrammar's tokenizer description")
    given = parser.parse_args(arguments)
    try:
        resolved = resolve(load_spec(given.spec), LINES[given.line])
        info = given.tokenizer_info / "xgrammar_tokenizer_info.json" if given.tokenizer_info else None
        print(assemble_trtllm_repository(resolved, given.output, tokenizer_info=info))
    except SpecError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
