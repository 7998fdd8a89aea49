"""`drafthouse peers`: our engine beside openvino-genai, llama.cpp and vLLM, each with its best speculation."""

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli.common import SpecArgument, console, for_programs, progress, read_spec, say, told
from cli.prepare import build_engines, prepare_models
from deployments.cache import cache_directory
from deployments.files.writing import write_text
from deployments.findings import UnsupportedDeployment
from deployments.spec import DeploymentSpec, SpecError, with_loadtest
from deployments.speculation import NoSpeculation
from engine.manifest import load_manifest
from engine.request import SamplingParams
from engine.serving.text import TextCodec
from engine.vllm.speculation import speculative_config
from loadtest import prompts as prompt_files
from loadtest.prompts import Prompt, render
from loadtest.provenance import collect
from planner.bench.peers.arms import (
    OURS,
    Arm,
    PeerModel,
    embedded_arms,
    llama_cpp_arms,
    openvino_genai_arms,
)
from planner.bench.peers.beside import BASE, check_beside, named_deployments
from planner.bench.peers.environments import REQUIREMENTS, Environment, Unavailable, prepare_environment
from planner.bench.peers.records import RECORDS, RESULT, PeerPrompt, check_records, read_records
from planner.bench.peers.run import Started, default_threads, run_peers
from planner.bench.peers.summary import ArmSummary, summarise
from planner.bench.peers.table import acceptance_table, category_table, peers_table, position_table
from planner.bench.peers.vllm_arms import VLLM, VllmModel, as_chain, cache_bytes, vllm_arms

_OUTSIDE = {"openvino-genai": "openvino_genai", "llama.cpp": "llama_cpp", VLLM: "vllm"}


def peers(
    spec_path: SpecArgument,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="Another deployment of the same target and engine, as one more arm."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Requests at once.")] = 1,
    prompts: Annotated[Path | None, typer.Option(help="JSONL of prompts, instead of the spec's.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts, taken from the categories in turn.")] = 26,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an answer, instead of the spec's.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each arm gets each prompt.")] = 1,
    temperature: Annotated[
        float, typer.Option(help="Of the answers, 0 is greedy; else with --no-others only.")
    ] = 0.0,
    others: Annotated[bool, typer.Option(help="Measure the other engines, too.")] = True,
    draft: Annotated[Path | None, typer.Option(help="GGUF file of a draft model, for llama.cpp.")] = None,
    chain: Annotated[
        int | None,
        typer.Option(
            min=1, max=31, help="Check against vLLM: the spec's method as chains of this many tokens."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory of records and result, instead of runs/peers/NAME.")
    ] = None,
) -> None:
    """Measure our engine and others on the same prompts, alone or in batches, each with its best speculation.

    A deployment that does not speculate compares the engines without speculation alone.
    """
    with told() as stop:
        _check_temperature(temperature, others=others, chain=chain)
        spec = with_loadtest(read_spec(spec_path), {"prompts": prompts, "max_tokens": max_tokens})
        if chain is not None:
            spec = _as_chains(spec, chain)
            if beside:
                raise SpecError("--chain checks the method of the spec alone; leave --beside out")
        others_of_ours = _deployments_beside(spec, beside or ())
        folder = output or Path("runs/peers") / spec.name
        # What takes minutes comes after everything that can be wrong.
        check_records(folder)
        _check_draft(draft)
        asked = prompt_files.load(spec.loadtest.prompts_file)
        for each in (spec, *others_of_ours):
            prepare_models(each)
        gguf_file(spec)
        chosen = _prompts(spec, asked, count, batch)
        for each in (spec, *others_of_ours):
            build_engines(each)
        model, vllm = peer_model(spec, draft, batch), _vllm_model(spec, batch, checks=chain is not None)
        wanted = {VLLM: _OUTSIDE[VLLM]} if chain is not None else _OUTSIDE
        environments, missing = _environments(wanted if others else {})
        ours = embedded_arms(spec, model.threads, others_of_ours, batch, temperature)
        arms = [arm for arm in _arms(ours, spec, model, vllm, chain) if arm.engine in environments]
        stop.kept = f"records of what was asked are in {folder}; the same command begins again"
        with progress() as show:
            started = run_peers(
                arms, environments, chosen, folder,
                max_tokens=spec.loadtest.max_tokens, rounds=rounds, batch=batch, report=show,
            )  # fmt: skip
        summaries = summarise(read_records(folder / RECORDS))
        console.print(peers_table(summaries))
        console.print(category_table(summaries))
        console.print(acceptance_table(summaries))
        if chain is not None:
            console.print(position_table(summaries))
        for name, reason in {**missing, **started.missing}.items():
            say(f"measured without {name}: {reason}")
        document = _document(spec, model, vllm, batch, temperature, summaries, started, missing)
        write_text(folder / RESULT, document + "\n")
        say(f"records and result: {folder}")
        for_programs(document)


def peer_model(spec: DeploymentSpec, draft: Path | None, batch: int = 1) -> PeerModel:
    """What other engines are given of a deployment that is built.

    Raises:
        SpecError: its target has no GGUF file.
    """
    manifest = load_manifest(spec.engine_directory)
    return PeerModel(
        gguf_file(spec),
        draft,
        manifest.end_ids,
        spec.embedded.max_sequence_length,
        spec.embedded.threads or default_threads(),
        batch,
    )


def gguf_file(spec: DeploymentSpec) -> Path:
    """The target as other engines read it.

    Raises:
        SpecError: there is none.
    """
    found = next(iter(sorted(spec.target.model.glob("*.gguf"))), None)
    if found is None:
        raise SpecError(
            f"{spec.target.model} has no GGUF file, which the other engines read; drafthouse model keeps the one "
            "that it is given"
        )
    return found


def _check_temperature(temperature: float, *, others: bool, chain: int | None) -> None:
    """Refuse what is no temperature, and one for engines that are measured greedily.

    Raises:
        RequestError, SpecError: says what to do.
    """
    SamplingParams(temperature=temperature)
    if temperature > 0 and chain is not None:
        raise SpecError(
            f"--temperature {temperature:g}: --chain checks greedy answers; leave it out, and add --no-others"
        )
    if temperature > 0 and others:
        raise SpecError(
            f"--temperature {temperature:g}: the other engines are asked greedily; add --no-others"
        )


def _check_draft(draft: Path | None) -> None:
    if draft is not None and not draft.is_file():
        raise SpecError(
            f"--draft {draft} is not a file; give the GGUF file of a model with the target's tokenizer"
        )


def _deployments_beside(spec: DeploymentSpec, beside: Sequence[Path]) -> list[DeploymentSpec]:
    """The others, which differ in how they speculate alone.

    Raises:
        SpecError: one does not.
    """
    found = [read_spec(path) for path in beside]
    for other in found:
        check_beside(spec, other)
    named_deployments(spec, found)  # refuses names that are taken, before anything is built
    return found


def _as_chains(spec: DeploymentSpec, length: int) -> DeploymentSpec:
    """The deployment with chains of `length` tokens, in float32, which both engines have.

    Raises:
        SpecError: vLLM does not have its method.
    """
    speculation = as_chain(spec.speculation, length)
    try:
        if speculative_config(speculation, max_batch_size=1) is None:
            raise SpecError("--chain needs a method: speculation is none")
    except UnsupportedDeployment as error:
        raise SpecError(f"--chain: {error}") from None
    engine = spec.embedded.model_copy(update={"precision": "fp32"})
    return spec.model_copy(update={"speculation": speculation, "engine": engine})


def _vllm_model(spec: DeploymentSpec, batch: int, *, checks: bool) -> VllmModel:
    """What vLLM is given: float32 to check against it, and else what the model's files say."""
    manifest, length = load_manifest(spec.engine_directory), spec.embedded.max_sequence_length
    return VllmModel(
        target=spec.target.model,
        dtype="float32" if checks else "auto",
        end_ids=manifest.end_ids,
        max_sequence_length=length,
        threads=spec.embedded.threads or default_threads(),
        scratch=cache_directory() / "peers" / spec.name,
        batch=batch,
        cache_bytes=cache_bytes(manifest, batch, length),
    )


def _arms(
    ours: Sequence[Arm], spec: DeploymentSpec, model: PeerModel, vllm: VllmModel, chain: int | None
) -> list[Arm]:
    """Ours, and those of the other engines."""
    if chain is not None:
        method = spec.speculation.method
        ours = [arm for arm in ours if arm.method in (BASE, method)]
        return [*ours, vllm.arm(BASE, NoSpeculation()), vllm.arm(method, spec.speculation)]
    others = [openvino_genai_arms(model), llama_cpp_arms(model), vllm_arms(vllm, spec.speculation)]
    found = [*ours, *itertools.chain(*others)]
    return [arm for arm in found if arm.method == BASE] if len(ours) == 1 else found


def _prompts(spec: DeploymentSpec, asked: Sequence[Prompt], count: int, batch: int) -> list[PeerPrompt]:
    """As many as are wanted, of those that leave room for the answer; none that would not fill a batch."""
    room = spec.embedded.max_sequence_length - spec.loadtest.max_tokens
    codec = TextCodec(spec.target.model)
    prompts = render(asked, spec.target.model)
    tokens = {item.id: tuple(codec.encode(item.text)) for item in prompts}
    fitting = [item for item in prompts if len(tokens[item.id]) <= room]
    if not fitting:
        raise SpecError(
            f"no prompt of {spec.loadtest.prompts_file} leaves room for {spec.loadtest.max_tokens} tokens"
        )
    number = min(count, len(fitting))
    if number < batch:
        raise SpecError(
            f"--batch {batch} needs as many prompts; --count is {count}, and {len(fitting)} prompts of "
            f"{spec.loadtest.prompts_file} leave room for {spec.loadtest.max_tokens} tokens"
        )
    if left := number % batch:
        say(f"{number - left} of {number} prompts, {batch} at once: the others would make no whole batch")
    chosen = prompt_files.select(fitting, number - left)
    return [PeerPrompt(item.id, item.category, tokens[item.id]) for item in chosen]


def _environments(outside: Mapping[str, str]) -> tuple[dict[str, Environment], dict[str, str]]:
    """Where each engine's program runs; the others' are installed on first use."""
    found, missing = {OURS: Environment(Path(sys.prefix))}, {}
    for engine, name in outside.items():
        with progress() as show:
            show(f"installing {engine} into an environment of its own, if it is not there", None)
            try:
                found[engine] = prepare_environment(REQUIREMENTS / f"{name}.txt", cache_directory() / "peers")
            except Unavailable as error:
                missing[engine] = str(error)
    return found, missing


def _document(
    spec: DeploymentSpec,
    model: PeerModel,
    vllm: VllmModel,
    batch: int,
    temperature: float,
    summaries: list[ArmSummary],
    started: Started,
    missing: dict[str, str],
) -> str:
    """One line for programs."""
    return json.dumps(
        {
            "deployment": spec.name,
            "precision": {
                OURS: spec.embedded.precision,
                **dict.fromkeys(_OUTSIDE, model.gguf.name),
                VLLM: vllm.dtype,
            },
            "threads": model.threads,
            "batch": batch,
            "max_tokens": spec.loadtest.max_tokens,
            "temperature": temperature,
            "arms": [item.as_dict() for item in summaries],
            "settings": {
                process.arm.name: {
                    key: process.arm.settings[key]
                    for key in ("method", "ngram", "draft_length", "arguments", "spec")
                    if key in process.arm.settings
                }
                for process in started.running
            },
            "missing": {**missing, **started.missing},
            "versions": started.versions,
            "environment": collect(),
        }
    )
