"""Assembles the Triton repository of a deployment on TensorRT-LLM: the last step of its plan.

It is a command of its own so that a plan can be printed, pasted and resumed as a whole; it needs no GPU and runs
where the plan is run, not in a container.

Example::

    python -m build.trtllm.repository deployments/llama3-8b-eagle3-trtllm.yaml --line=A --output=runs/model_repo
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from build.trtllm.releases import LINES
from build.trtllm.repository.assemble import assemble_trtllm_repository
from build.trtllm.support.matrix import resolve
from deployments.spec import SpecError, load_spec


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
