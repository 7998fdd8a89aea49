"""The kit's own engine, in process: without speculation, or as a deployment speculates.

What drafting takes is the engine's own account of it, from the step on after which each answer has its first token:
drafters read prompts, too, and that is not drafting.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deployments.spec import DeploymentSpec
from engine.deployment import open_engine
from engine.manifest import load_manifest
from engine.outputs import RequestOutput
from engine.planned import speculator_directories
from engine.policy import DraftPolicy
from engine.request import GenerationRequest, SamplingParams
from planner.bench.peers.protocol import Answer, Emission, Generate, by_depth, serve
from planner.profile.records import RecordingPolicy


def load(settings: Mapping[str, Any]) -> tuple[Mapping[str, str], Generate]:
    """Open the engine of the deployment that `settings["spec"]` holds; it answers at `settings["temperature"]`."""
    spec = DeploymentSpec.model_validate(settings["spec"])
    watched: list[RecordingPolicy] = []

    def watch(policy: DraftPolicy) -> DraftPolicy:
        watched.append(RecordingPolicy(policy))
        return watched[-1]

    engine, _ = open_engine(spec, spec.engine_directory, speculator_directories(spec), watch=watch)
    manifest = load_manifest(spec.engine_directory)

    def generate(prompts: list[list[int]], max_tokens: int, seed: int) -> list[Answer]:
        started = time.perf_counter()
        replies = [_Reply(started) for _ in prompts]
        for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True), seed):
            sampling = SamplingParams(settings["temperature"], seed=number)
            request = GenerationRequest(
                tuple(prompt), max_tokens, sampling, end_ids=frozenset(manifest.end_ids)
            )
            engine.submit(request, reply.take)
        seconds, drafted = 0.0, None
        while engine.step():
            if drafted is None and all(reply.emission.begun for reply in replies):
                seconds, drafted = engine.statistics.draft_seconds, [reply.drafted for reply in replies]
        seconds = engine.statistics.draft_seconds - seconds
        later = [reply.drafted - before for reply, before in zip(replies, drafted or (), strict=True)]
        return [
            replace(
                reply.answer(watched[0]),
                draft_tokens=own,
                draft_seconds=seconds * own / sum(later) if own else 0.0,
            )
            for reply, own in zip(replies, later, strict=True)
        ]

    return manifest.versions, generate


class _Reply:
    """What the engine says to one request."""

    def __init__(self, started: float) -> None:
        self.emission = Emission(started)
        self._last: RequestOutput | None = None

    def take(self, output: RequestOutput) -> None:
        """The callback."""
        self.emission.add(output.tokens)
        self._last = output

    @property
    def last(self) -> RequestOutput:
        """Its last output so far."""
        assert self._last is not None
        return self._last

    @property
    def drafted(self) -> int:
        """Tokens that were drafted for it so far."""
        return self.last.metrics.total_draft_tokens

    def answer(self, policy: RecordingPolicy) -> Answer:
        """The answer, now that it has ended; its drafts are as `policy` has recorded them."""
        if self.last.error is not None:
            raise self.last.error
        drafts = policy.drafts.pop(self.last.request_id, [])
        return replace(
            self.emission.answer(end_ids=(), steps=self.last.metrics.steps),
            drafted=by_depth([draft.depth for draft in drafts]),
            accepted=by_depth([len(draft.ranks) for draft in drafts]),
        )


if __name__ == "__main__":
    serve(load)
