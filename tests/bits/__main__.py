"""The command; exit status 1 if a bit differs, 2 if nothing was compared. The last line is a JSON document."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from client import ChatTemplate
from deployments.errors import DrafthouseError
from deployments.spec import DeploymentSpec, SpecError, load_spec
from engine.compiled_runner import CompiledRunner
from engine.deployment import open_backend
from engine.manifest import load_manifest
from engine.runner import BLOCK_SIZE
from engine.serving.text import TextCodec
from loadtest import prompts as prompt_files
from tests.bits.ways import BATCH, WAYS, Ways

AS_IF_CPUS = Path(__file__).parents[1] / "processors" / "as_if_cpus"


def main() -> int:
    """Compute, and compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.bits", description=__doc__)
    parser.add_argument("specs", nargs="+", type=Path, help="deployments, built")
    parser.add_argument("--prompts", type=Path, default=Path("loadtest/prompts/drafthouse.jsonl"))
    parser.add_argument("--count", type=_positive, default=26, help="prompts (%(default)s)")
    parser.add_argument("--max-tokens", type=_positive, default=64, help="of an answer (%(default)s)")
    parser.add_argument("--max-prompt-tokens", type=_positive, default=1024, help="longer ones are left out")
    parser.add_argument("--threads", type=_positive, nargs="+", default=[os.cpu_count() or 1])
    parser.add_argument("--into", type=Path, default=Path("runs/bits"), help="directory of the records")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)  # a process of one cell
    options = parser.parse_args()
    if options.within:
        _compute(options.specs[0], options.threads[0], options)
        return 0
    try:
        for spec in options.specs:
            _check(spec, options)
        for spec in options.specs:
            for threads in options.threads:
                _in_a_process(spec, threads, options)
    except (DrafthouseError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:  # which has said why
        print(f"error: {error.cmd[0]} ended with status {error.returncode}", file=sys.stderr)
        return 2
    return _judge(options)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def _check(path: Path, options: argparse.Namespace) -> None:
    """Refuse what no process could compute.

    Raises:
        DrafthouseError, OSError: a spec, its engine or the prompts cannot be read, or answers do not fit the engine.
    """
    spec = load_spec(path)
    most = load_manifest(spec.engine_directory).max_sequence_length
    prompt_files.load(options.prompts)
    if (longest := options.max_prompt_tokens + options.max_tokens) > most:
        raise SpecError(
            f"{path}: prompts of {options.max_prompt_tokens} tokens and answers of {options.max_tokens} are {longest}; "
            f"the engine was compiled for {most}"
        )


def _in_a_process(spec: Path, threads: int, options: argparse.Namespace) -> None:
    given = {
        "--prompts": options.prompts,
        "--count": options.count,
        "--max-tokens": options.max_tokens,
        "--max-prompt-tokens": options.max_prompt_tokens,
        "--threads": threads,
        "--into": options.into,
    }
    command = [sys.executable, "-m", "tests.bits", str(spec), "--within"]
    command += [str(part) for pair in given.items() for part in pair]
    if threads > (os.cpu_count() or 1):
        command = [str(AS_IF_CPUS), str(threads), *command]
    subprocess.run(command, check=True)


def _compute(path: Path, threads: int, options: argparse.Namespace) -> None:
    spec = load_spec(path)
    file = _records(options.into, spec, threads)
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {one["prompt"] for one in _read(file)}
    longest = options.max_prompt_tokens + options.max_tokens
    engine = spec.embedded.model_copy(update={"threads": threads})
    runner = CompiledRunner(
        spec.engine_directory,
        open_backend(engine),
        num_blocks=Ways.blocks(longest, BLOCK_SIZE),
        branch_blocks=4 * BATCH,
    )
    ways = Ways(runner, longest, options.max_tokens)
    prompts = _prompts(spec, options)
    with file.open("a", encoding="utf-8") as lines:
        while group := list(islice(prompts, BATCH)):
            if all(name in done for name, _ in group):
                continue
            answers = ways.answers([tokens for _, tokens in group])
            differing = ways.differing(answers)
            for answer, (name, _) in zip(answers, group, strict=True):
                if name in done:
                    continue
                rows = {way: [token for slot, token in differing[way] if slot == answer.slot] for way in WAYS}
                record = {"prompt": name, "rows": len(answer.tokens), "digest": answer.digest(), **rows}
                lines.write(json.dumps(record) + "\n")
            lines.flush()
            print(f"{file.stem}: {len(_read(file))} of {options.count} prompts", file=sys.stderr)


def _prompts(spec: DeploymentSpec, options: argparse.Namespace) -> Iterator[tuple[str, list[int]]]:
    codec = TextCodec(spec.target.model)
    template = ChatTemplate.from_directory(spec.target.model)
    found = 0
    for item in prompt_files.load(options.prompts):
        tokens = codec.encode(template.render([{"role": "user", "content": item.text}]))
        if found < options.count and len(tokens) <= options.max_prompt_tokens:
            found += 1
            yield str(item.id), tokens


def _records(folder: Path, spec: DeploymentSpec, threads: int) -> Path:
    return folder / f"{spec.engine_directory.name}-{threads}.jsonl"


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _judge(options: argparse.Namespace) -> int:
    """A line for each target and number of threads, and whether these agree with each other."""
    print(f"{'target':44} {'threads':>7} {'prompts':>7} {'rows':>7}  rows that differ")
    total: Counter[str] = Counter()
    for path in options.specs:
        spec = load_spec(path)
        first: dict[str, str] = {}
        for threads in options.threads:
            records = _read(_records(options.into, spec, threads))
            rows = sum(one["rows"] for one in records)
            wrong = {way: sum(len(one[way]) for one in records) for way in WAYS}
            other = sum(first.setdefault(one["prompt"], one["digest"]) != one["digest"] for one in records)
            wrong["answers, by threads"] = other
            total.update(prompts=len(records), rows=rows, differing=sum(wrong.values()))
            told = ", ".join(f"{count} {way}" for way, count in wrong.items())
            print(f"{spec.engine_directory.name:44} {threads:7} {len(records):7} {rows:7}  {told}")
    print(json.dumps(dict(total)))
    return 1 if total["differing"] or not total["rows"] else 0


if __name__ == "__main__":
    sys.exit(main())
