"""Runs prompts through the embedded engine at full draft length and profiles what happens.

Example::

    profile = run_profile(spec, prompts, ProfileSettings(), records.append)
    profile["acceptance"]["0"]["acceptance_length"]         # {"value": 2.31, "low": 2.24, "high": 2.39, ...}
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from deployments.spec import DeploymentSpec
from engine.compiled_runner import CompiledRunner
from engine.deployment import open_engine
from engine.engine import Engine
from engine.fingerprint import Fingerprint, drafter_identity
from engine.outputs import RequestOutput
from engine.planned import speculator_directories
from engine.policy import DraftPolicy
from engine.request import GenerationRequest, SamplingParams
from engine.scheduler import EngineConfig
from planner.bench.measure import MOST_TOKENS
from planner.profile.acceptance import summarise
from planner.profile.cost import longest_request, measure_costs
from planner.profile.records import RecordingPolicy, RequestRecord
from speculators.base import Speculator

CONTEXTS = (32, 512, 2000)
BATCHES = (1, 2, 4, 8, 16)

Report = Callable[[str, float | None], None]
Prompts = Mapping[tuple[str, str], Sequence[int]]
"""Token ids by category and name."""


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """What to measure.

    Attributes:
        max_tokens: tokens of each answer.
        temperatures: each is profiled on all prompts.
        contexts: tokens before a step whose cost is measured, as far as the deployment takes such requests.
        batches: requests of a step whose cost is measured, as far as the deployment takes them.
        tokens: tokens of a request in such a step; of drafters whose drafts are longer, more.
        rounds: of the costs; 0 measures none.
        seed: of sampling.

    Raises:
        RequestError: a temperature is negative or not finite.
    """

    max_tokens: int = 128
    temperatures: tuple[float, ...] = (0.0, 1.0)
    contexts: tuple[int, ...] = CONTEXTS
    batches: tuple[int, ...] = BATCHES
    tokens: tuple[int, ...] = (1, 2, 4, 6, 8, 16)
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for temperature in self.temperatures:
            SamplingParams(temperature=temperature)


def run_profile(
    spec: DeploymentSpec,
    prompts: Prompts,
    settings: ProfileSettings,
    record: Callable[[RequestRecord], None],
    report: Report = lambda line, share: None,
) -> dict[str, Any]:
    """Profile a deployment that has been built.

    Drafts have their full length at every step: a profile says what a length is worth, so it must not follow from it.

    Args:
        spec: the deployment.
        prompts: what to generate from.
        settings: what to measure.
        record: gets the raw record of each request when it has ended.
        report: gets what goes on, and the share of it that is done.

    Raises:
        EngineError: the engine is missing or does not fit.
    """
    watched: list[RecordingPolicy] = []

    def watch(policy: DraftPolicy) -> DraftPolicy:
        watched.append(RecordingPolicy(policy))
        return watched[-1]

    report("loading the engine", None)
    engine, runner = open_engine(
        _at_full_length(spec), spec.engine_directory, speculator_directories(spec), watch=watch
    )
    end_ids = frozenset(runner.manifest.end_ids)
    acceptance = {}
    for temperature in settings.temperatures:
        sampling = SamplingParams(temperature)
        requests = {
            key: GenerationRequest(
                tuple(tokens),
                settings.max_tokens,
                replace(sampling, seed=settings.seed + number),
                end_ids=end_ids,
            )
            for number, (key, tokens) in enumerate(prompts.items())
        }
        records = _generate(engine, watched[-1], requests, report)
        for item in records:
            record(item)
        acceptance[f"{temperature:g}"] = summarise(records)
    measured = (
        _costs(runner, watched[-1].speculators, settings, engine.config, report) if settings.rounds else {}
    )
    return {
        "deployment": spec.name,
        "target": runner.manifest.source,
        "precision": runner.manifest.precision,
        "speculation": spec.speculation.model_dump(mode="json", exclude_none=True),
        "prompts": len(prompts),
        "prompt_tokens": statistics.mean(map(len, prompts.values())),
        "settings": asdict(settings),
        "fingerprint": Fingerprint.of(spec).model_dump(),
        "drafter": drafter_identity(spec.speculation),
        "buckets": list(runner.buckets),
        "chunks": [spec.embedded.prefill_chunk, spec.embedded.idle_prefill_chunk],
        "acceptance": acceptance,
        "cost": measured,
    }


def _at_full_length(spec: DeploymentSpec) -> DeploymentSpec:
    """The deployment without whatever shortens drafts, and without reuse of what other prompts left in the cache."""
    changes = {
        "adaptive": False,
        "max_concurrency": None,
        "draft_length_schedule": None,
        "draft_policy": "scheduled",
    }
    known = {key: value for key, value in changes.items() if key in type(spec.speculation).model_fields}
    return spec.model_copy(
        update={
            "speculation": spec.speculation.model_copy(update=known),
            "engine": spec.embedded.model_copy(update={"kv_cache_reuse": False}),
        }
    )


def _generate(
    engine: Engine,
    watched: RecordingPolicy,
    requests: Mapping[tuple[str, str], GenerationRequest],
    report: Report,
) -> list[RequestRecord]:
    """Run all requests, as many at once as the engine takes."""
    records: list[RequestRecord] = []
    running: dict[int, tuple[str, str]] = {}

    def callback(output: RequestOutput) -> None:
        if not output.finish_reason:
            return
        category, name = running.pop(output.request_id)
        temperature = requests[category, name].sampling.temperature
        metrics, drafts = output.metrics, watched.drafts.pop(output.request_id, [])
        records.append(
            RequestRecord(name, category, temperature, metrics.num_output_tokens, metrics.steps, drafts)
        )
        done = len(records)
        report(f"temperature {temperature:g}: {done} of {len(requests)} prompts", done / len(requests))

    waiting = list(requests.items())
    while waiting or not engine.idle:
        while waiting and len(running) < engine.config.max_batch_size:
            key, request = waiting.pop(0)
            running[engine.submit(request, callback)] = key
        engine.step()
    return records


def _costs(
    runner: CompiledRunner,
    speculators: Sequence[Speculator],
    settings: ProfileSettings,
    config: EngineConfig,
    report: Report,
) -> dict[str, Any]:
    most = config.max_sequence_length
    contexts = [context for context in settings.contexts if longest_request(1, context) <= most]
    batches = [batch for batch in settings.batches if batch <= config.max_batch_size]
    if not contexts or not batches:
        return {}
    asked = {
        *settings.tokens,
        *((MOST_TOKENS,) if speculators[-1].max_draft_length >= max(settings.tokens) else ()),
    }
    tokens = [count for count in sorted(asked) if longest_request(count, max(contexts)) <= most]
    return measure_costs(
        runner,
        speculators[-1],  # a lookup before it costs nothing
        contexts=contexts,
        batches=batches,
        tokens=tokens,
        longest_draft=max(each.max_draft_length for each in speculators),
        chunks=sorted({config.prefill_chunk, config.idle_prefill_chunk}),
        rounds=settings.rounds,
        report=report,
    )
