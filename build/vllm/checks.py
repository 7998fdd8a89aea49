"""What vLLM would not do of a deployment, found before it is started.

Methods and settings are known to the kit, for the release that it is written for. Everything else is asked of the
release that is installed, where one is: its own configuration classes take the arguments, or say why not.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from build.triton.model_config import repository_place_findings
from build.vllm.arguments import engine_arguments
from deployments.findings import Finding
from deployments.spec import DeploymentSpec
from deployments.speculation import NoSpeculation
from engine.vllm.methods import VllmMethod, vllm_method
from engine.vllm.releases import RELEASE
from engine.vllm.speculation import speculation_findings, speculative_config
from planner.bench.peers.environments import Environment
from planner.bench.peers.processes import ProgramError, run

_CHECK_SECONDS = 180
_SHOWN = 2000  # characters of what it says instead of an answer
# Words in the path of a draft that vLLM takes for its method, whatever `method` says (SpeculativeConfig, 0.32.0).
_TAKEN_FOR = {"eagle-": "eagle", "eagle3": "eagle3", "dflash": "dflash", "dspark": "dspark"}
# The program runs in vLLM's environment, where others print as well, also after it; this begins the line of the answer.
_ANSWER = "drafthouse-answer "
_ASK = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
answer = {}
try:
    arguments = json.loads(sys.argv[1])
    unknown = sorted(set(arguments) - set(AsyncEngineArgs.__dataclass_fields__))
    if unknown:
        answer = {"unknown": unknown, "known": sorted(AsyncEngineArgs.__dataclass_fields__)}
    else:
        AsyncEngineArgs(**arguments).create_engine_config()
except Exception as error:
    answer = {"error": f"{type(error).__name__}: {error}"}
print()
print(sys.argv[2] + json.dumps(answer))
"""


def vllm_findings(spec: DeploymentSpec) -> Iterator[Finding]:
    """What the kit knows by itself."""
    yield from repository_place_findings(spec)
    unsupported = list(speculation_findings(spec.speculation))
    for finding in unsupported:
        yield replace(finding, reason=f"speculation: {finding.reason}")
    if not (spec.target.model / "tokenizer.json").is_file() and spec.target.model.is_dir():
        yield Finding(
            "no-tokenizer",
            "error",
            f"{spec.target.model} has no tokenizer.json, from which the kit reads prompts and writes text",
            "a model with a fast tokenizer",
        )
    if unsupported:
        yield from _repeated(spec.model_copy(update={"speculation": NoSpeculation()}))
    else:
        yield from _path_findings(speculative_config(spec.speculation, spec.vllm.max_batch_size))
        yield from _repeated(spec)
    method = vllm_method(spec.speculation)
    if isinstance(method, VllmMethod):
        yield from method.findings(spec.speculation)


def asked_of_vllm(spec: DeploymentSpec, environment: Environment) -> Iterator[Finding]:
    """What the installed release says to the arguments; makes its real configuration of them, and loads no weights."""
    arguments = engine_arguments(spec, Path.cwd())
    try:
        said = run(
            [environment.python, "-c", _ASK, json.dumps(arguments), _ANSWER],
            seconds=_CHECK_SECONDS,
            variables=environment.variables(VLLM_LOGGING_LEVEL="ERROR"),
        )
    except ProgramError as error:
        yield _not_asked(str(error))
        return
    answers = [line for line in said.splitlines() if line.startswith(_ANSWER)]
    if not answers:
        yield _not_asked(f"it has ended without an answer:\n{said.strip()[-_SHOWN:]}")
        return
    answer: dict[str, Any] = json.loads(answers[-1].removeprefix(_ANSWER))
    for name in answer.get("unknown", ()):
        near = difflib.get_close_matches(name, answer["known"], n=1)
        yield Finding(
            "unknown-argument",
            "error",
            f"engine.arguments.{name}: the installed vLLM has no such argument",
            near[0] if near else "an argument of `vllm serve`, with underscores",
        )
    if "error" in answer:
        yield Finding(
            "refused-by-vllm",
            "error",
            f"the installed vLLM refuses the deployment: {answer['error']}",
            "what it says",
        )


def _not_asked(reason: str) -> Finding:
    return Finding("vllm-not-asked", "warning", f"vLLM could not be asked: {reason}")


def _path_findings(config: dict[str, Any] | None) -> Iterator[Finding]:
    if config is None or config["method"] not in ("draft_model", "medusa"):
        return
    for word, method in _TAKEN_FOR.items():
        if word in str(config["model"]).lower():
            yield Finding(
                "taken-for-another-method",
                "error",
                f"vLLM {RELEASE} takes a draft in {config['model']} for {method}, since its path has {word!r} in it",
                "a directory without that word",
            )


def _repeated(spec: DeploymentSpec) -> Iterator[Finding]:
    own = engine_arguments(
        spec.model_copy(update={"engine": spec.vllm.model_copy(update={"arguments": {}})}), Path.cwd()
    )
    for name in spec.vllm.arguments:
        if name in own or name in (
            "speculative_config",
            "additional_config",
            "per_request_spec_decode_metrics",
        ):
            yield Finding(
                "argument-set-twice",
                "error",
                f"engine.arguments.{name}: the kit sets it" + (f" to {own[name]!r}" if name in own else ""),
                f"no {name} in engine.arguments; the spec has a key of its own for it",
            )
