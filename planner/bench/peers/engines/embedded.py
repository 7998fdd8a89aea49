"""The kit's own engine, in process: no speculation, ANPD, or a trained speculator."""

import time
from collections.abc import Mapping
from typing import Any

from deployments.spec import DeploymentSpec
from engine.deployment import open_engine
from engine.manifest import load_manifest
from engine.outputs import RequestOutput
from engine.planned import speculator_directories
from engine.policy import DraftPolicy
from engine.request import GenerationRequest
from planner.bench.peers.protocol import Answer, Generate, by_depth, serve
from planner.profile.records import RecordingPolicy


def load(settings: Mapping[str, Any]) -> tuple[Mapping[str, str], Generate]:
    """Open the engine of the deployment that `settings["spec"]` holds."""
    spec = DeploymentSpec.model_validate(settings["spec"])
    watched: list[RecordingPolicy] = []

    def watch(policy: DraftPolicy) -> DraftPolicy:
        watched.append(RecordingPolicy(policy))
        return watched[-1]

    engine, _ = open_engine(spec, spec.engine_directory, speculator_directories(spec), watch=watch)
    manifest = load_manifest(spec.engine_directory)

    def generate(prompt: list[int], max_tokens: int) -> Answer:
        outputs: list[RequestOutput] = []
        stamps: list[float] = []

        def callback(output: RequestOutput) -> None:
            stamps.append(time.perf_counter())
            outputs.append(output)

        started = time.perf_counter()
        request = GenerationRequest(tuple(prompt), max_tokens, end_ids=frozenset(manifest.end_ids))
        engine.submit(request, callback)
        while engine.step():
            pass
        if outputs[-1].error is not None:
            raise outputs[-1].error
        tokens = [token for output in outputs for token in output.tokens]
        drafts = watched[0].drafts.pop(outputs[-1].request_id, [])
        return Answer(
            tokens,
            stamps[-1] - started,
            stamps[0] - started,
            outputs[-1].metrics.steps,
            by_depth([draft.depth for draft in drafts]),
            by_depth([len(draft.ranks) for draft in drafts]),
        )

    return manifest.versions, generate


if __name__ == "__main__":
    serve(load)
