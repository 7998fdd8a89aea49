"""What a way of drafting brings: tokens a step from replayed records, milliseconds from the cost table.

A decoding step of B requests verifies B roots and what was drafted for each, and runs the probes of methods that have
such. How much is drafted differs from request to request and step to step; so the expected cost is taken over its
distribution, that of the sum of B independent drafts.
Tokens a second are expected tokens over expected milliseconds (renewal reward).

Requests also have to be read. Of C users who wait for their answers, X requests a millisecond end; each of them takes
W ms of reading and S = (tokens - 1) / (tokens a step) decoding steps, which it shares with D requests, so
1 = X W + X S f(D) / D. How many are being read meanwhile, and wait for it, follows from Little's law with the
approximation of Schweitzer for closed queueing networks: who arrives finds what the others leave on average.

Where a profile knows what its service gave without speculation, every step takes so much longer as serving adds
(`planner.plan.service`).

Every figure comes as an array of samples: the first one from the records and medians as they are, the others from
requests and rounds drawn anew (bootstrap), the same ones for every candidate, at a moment that differs from those of
the profile as its rounds do from each other (`planner.plan.moments`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.control.errors import ProfileError
from engine.control.table import CostTable, check_covered
from planner.plan.moments import moments
from planner.plan.profiles import Profile
from planner.plan.replay import Behaviour
from planner.plan.service import chunk_ms

Floats = NDArray[np.float64]
SAMPLES = 200
_ITERATIONS = 40


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked of a service: means.

    Attributes:
        concurrency: users that wait for their answers.
        prompt_tokens, output_tokens: of a request.
        cached_tokens: of a prompt's, those that the service has read before, for another request.
    """

    concurrency: int
    prompt_tokens: float
    output_tokens: float
    cached_tokens: float = 0.0

    @property
    def context(self) -> float:
        """Tokens before a decoding step, on average."""
        return self.prompt_tokens + self.output_tokens / 2

    @classmethod
    def of(cls, load: Mapping[str, Any]) -> Traffic:
        """That of a measured load, see `planner.plan.profiles.Profile.serving`."""
        return cls(load["concurrency"], load["prompt_tokens"], load["output_tokens"])


@dataclass(frozen=True)
class Prediction:
    """Samples of what requests see; the first one is the prediction, the others say how sure it is.

    Attributes:
        tokens_per_step: of a request, in decoding.
        step_ms, draft_ms: of a step at the full batch: verification, and drafting before it.
        tokens_per_second: of all requests, the reading of prompts included.
        ttft_ms, tpot_ms, latency_ms: means over requests.
        shares: ``[requests]``, tokens a step of each recorded request in relation to the mean.
    """

    tokens_per_step: Floats
    step_ms: Floats
    draft_ms: Floats
    tokens_per_second: Floats
    ttft_ms: Floats
    tpot_ms: Floats
    latency_ms: Floats
    shares: Floats


class Predictor:
    """Predicts from one profile.

    Args:
        profile: costs and records.
        samples: how many are drawn, besides the first.

    Raises:
        ProfileError: its costs are incomplete.
    """

    def __init__(self, profile: Profile, samples: int = SAMPLES) -> None:
        self._random = np.random.default_rng(0)
        rounds = min((len(row["ms"]) for row in profile.cost["verify"]), default=0)
        drawn = self._random.integers(0, max(rounds, 1), (samples, rounds))
        self._drawn = np.concatenate([np.arange(rounds)[None], drawn])
        self.verify = CostTable(profile.cost["verify"], self._drawn, profile.buckets)
        self.draft = (
            CostTable(profile.cost["draft"], self._drawn, of_drafts=True) if profile.cost["draft"] else None
        )
        self._read = {
            size: CostTable([row for row in profile.cost["read"] if row["tokens"] == size], self._drawn)
            for size in {row["tokens"] for row in profile.cost["read"]}
        }
        self._chunks = profile.chunks
        self._weights: dict[int, Floats] = {}
        self._decoding: dict[tuple[int, float, int], tuple[Behaviour, tuple[Floats, Floats, Floats]]] = {}
        self._serving = self._chunks_of(profile.serving)
        self._moments = moments(profile, samples, self._random)

    def decoding(self, behaviour: Behaviour, context: float, batch: int) -> tuple[Floats, Floats, Floats]:
        """Tokens a step of a request, and milliseconds of verification and of drafting, in samples.

        They are kept: a plan asks for those of small batches at every concurrency.

        Raises:
            ProfileError: that was not measured.
        """
        key = id(behaviour), context, batch
        if key not in self._decoding:
            self._decoding[key] = behaviour, self._decoded(behaviour, context, batch)
        return self._decoding[key][1]

    def _decoded(self, behaviour: Behaviour, context: float, batch: int) -> tuple[Floats, Floats, Floats]:
        weights = self._requests(len(behaviour.steps))
        steps = weights @ behaviour.steps
        share = weights @ behaviour.nodes / steps[:, None]
        # The distribution of the sum of `batch` independent drafts is a power of the transform.
        longest = behaviour.most * batch
        sums = np.fft.irfft(np.fft.rfft(share, longest + 1, axis=1) ** batch, longest + 1, axis=1)
        sizes = 1 + behaviour.probes + np.arange(longest + 1) / batch
        step_ms = (sums * self.verify.milliseconds(context, batch, sizes)).sum(axis=1)
        return (
            weights @ behaviour.tokens / steps,
            step_ms,
            self._drafting(weights @ behaviour.asked / steps, context, batch),
        )

    def predict(self, behaviour: Behaviour, traffic: Traffic) -> Prediction:
        """What the users of such traffic get.

        Raises:
            ProfileError: costs of that were not measured.
        """
        users = traffic.concurrency
        check_covered("batches", (1, users), self.verify.batches)
        batches = self._batches(users)
        found = [self.decoding(behaviour, traffic.context, batch) for batch in batches]
        tau, step_ms, draft_ms = found[-1]
        curve = np.stack([step + draft for _, step, draft in found], axis=1)
        ended, waits = self._answers(traffic, tau, batches, curve + self._served(users, batches))
        ended, waits = ended / self._moments, waits * self._moments
        latency = users / ended
        decoding = latency - waits
        return Prediction(
            tokens_per_step=tau,
            step_ms=step_ms * self._moments,
            draft_ms=draft_ms * self._moments,
            tokens_per_second=ended * traffic.output_tokens * 1e3,
            ttft_ms=waits,
            tpot_ms=decoding / max(traffic.output_tokens - 1, 1),
            latency_ms=latency,
            shares=behaviour.tokens / behaviour.steps / tau[0],
        )

    @property
    def knows_service(self) -> bool:
        """Whether predictions are of the service; otherwise of its engine alone."""
        return bool(self._serving)

    def _answers(
        self, traffic: Traffic, tau: Floats, batches: Sequence[int], curve: Floats
    ) -> tuple[Floats, Floats]:
        """Requests that end in a millisecond, and milliseconds to a first token, of steps that take `curve`."""
        steps = (traffic.output_tokens - 1) / tau
        pieces, reading = self._reading(traffic, self._chunks[traffic.concurrency == 1])
        return _closed_network(traffic.concurrency, steps, batches, curve, pieces, reading)

    def _chunks_of(self, serving: Sequence[Mapping[str, Any]]) -> dict[int, Floats]:
        """Milliseconds a chunk by users, of the loads whose steps were measured, too."""
        found = {}
        for load in serving:
            traffic = Traffic.of(load)
            with suppress(ProfileError):
                found[traffic.concurrency] = self._chunk_ms(traffic, load["tokens_per_second"])
        return dict(sorted(found.items()))

    def _chunk_ms(self, traffic: Traffic, rounds: Sequence[float]) -> Floats:
        check_covered("batches", (1, traffic.concurrency), self.verify.batches)
        batches = self._batches(traffic.concurrency)
        steps = [self.verify.milliseconds(traffic.context, batch, [1.0])[:, 0] for batch in batches]
        curve, one = np.stack(steps, axis=1), np.ones(len(self._drawn))

        def rate(milliseconds: Floats) -> Floats:
            added = milliseconds[:, None] * np.asarray(batches, np.float64)
            ended, _ = self._answers(traffic, one, batches, curve + added)
            return ended * traffic.output_tokens * 1e3

        drawn = self._random.integers(0, len(rounds), (len(self._drawn) - 1, len(rounds)))
        means = np.asarray(rounds)[drawn].mean(axis=1)
        return chunk_ms(rate, np.concatenate([[np.mean(rounds)], means]))

    def _served(self, users: int, batches: Sequence[int]) -> Floats:
        """``[samples, batches]``: milliseconds that serving adds to a step."""
        if not self._serving:
            return np.zeros((len(self._drawn), len(batches)))
        known = np.stack(list(self._serving.values()), axis=1)
        chunk = _curves(list(self._serving), known)(np.full(len(self._drawn), float(users)))
        return chunk[:, None] * np.asarray(batches, np.float64)

    def _batches(self, users: int) -> list[int]:
        """Numbers of requests of a step between which its time is interpolated."""
        return [batch for batch in self.verify.batches if batch < users] + [users]

    def _requests(self, count: int) -> Floats:
        """``[samples, requests]``: how often each request is drawn."""
        if count not in self._weights:
            random, samples = np.random.default_rng(1), len(self._drawn) - 1
            drawn = random.multinomial(count, np.full(count, 1 / count), samples)
            self._weights[count] = np.concatenate([np.ones((1, count)), drawn])
        return self._weights[count]

    def _drafting(self, asked: Floats, context: float, batch: int) -> Floats:
        """Milliseconds of drafts of `asked` nodes on average, in each sample."""
        if self.draft is None or not asked.any():
            return np.zeros(len(asked))
        sizes = np.asarray(self.draft.sizes, np.float64)
        check_covered("draft lengths", (0, float(asked[0])), (0, sizes[-1]))
        known = self.draft.milliseconds(context, batch, sizes)
        nothing = np.zeros((len(asked), 1))
        return _curves([0.0, *sizes], np.concatenate([nothing, known], axis=1))(asked)

    def _reading(self, traffic: Traffic, chunk: int) -> tuple[int, Floats]:
        """Steps in which a prompt is read, and their milliseconds; the last chunk is as long as it has to be."""
        size = chunk if chunk in self._read else max(self._read)
        tokens, table = traffic.prompt_tokens, self._read[size]
        begins = np.arange(min(traffic.cached_tokens, tokens - 1), tokens, size)
        total: Floats = np.zeros(len(self._drawn))
        check_covered("prompts", (tokens, tokens), (0, max(table.contexts) + size))
        for begin in begins:
            whole = table.milliseconds(max(0.0, min(float(begin), tokens - size)), 1, [size])[:, 0]
            total = total + whole * min(1.0, (tokens - begin) / size)
        return len(begins), total


def _closed_network(
    users: int, steps: Floats, batches: Sequence[int], curve: Floats, pieces: int, reading: Floats
) -> tuple[Floats, Floats]:
    """Requests that end in a millisecond, and milliseconds to a first token.

    Args:
        users: requests at once.
        steps: ``[samples]``, decoding steps of a request.
        batches, curve: sizes of a step, and its milliseconds, ``[samples, batches]``.
        pieces, reading: steps in which a prompt is read, and what that adds to them, ``[samples]``.
    """
    step_ms = _curves(batches, curve)
    read = np.zeros(len(steps))  # how many requests are being read, or wait for it
    for _ in range(_ITERATIONS):
        others = 1 - read / users
        decoding = 1 + (users - 1) * others
        beside = (users - 1) * others  # who decodes while another one is read
        all_ms, beside_ms = step_ms(np.stack([decoding, np.maximum(beside, 1)]))
        ended = 1 / (reading + steps * all_ms / decoding)
        alone = reading + pieces * beside_ms * np.minimum(beside, 1)
        waits = alone * (1 + read * (users - 1) / users)
        read = (read + np.minimum(ended * waits, users - 0.5)) / 2
    return ended, np.minimum(waits, users / ended)


def _curves(knots: ArrayLike, curves: Floats) -> Callable[[Floats], Floats]:
    """Each sample's own curve ``[samples, knots]``, linear between knots, beyond them the end's.

    Asked for at places ``[..., samples]``, thousands of times for a plan, on a few hundred samples each time: so it
    does as few things as it can.
    """
    places, rows = np.asarray(knots, np.float64), np.arange(len(curves))
    if len(places) == 1:
        return lambda asked: np.broadcast_to(curves[:, 0], asked.shape)
    inner, widths = places[1:-1], np.diff(places)

    def at(asked: Floats) -> Floats:
        inside = np.minimum(np.maximum(asked, places[0]), places[-1])
        lower = inner.searchsorted(inside)
        share = (inside - places[lower]) / widths[lower]
        return np.asarray(curves[rows, lower] * (1 - share) + curves[rows, lower + 1] * share)

    return at
