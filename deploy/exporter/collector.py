"""Chooses the source, reads it at intervals, and keeps the exported families."""

import sys
import threading
import time
from dataclasses import dataclass

from deploy.exporter.exposition import Families
from deploy.exporter.fetch import Unanswered
from deploy.exporter.probe import Answer, Probe, Unmeasured, accepted_at
from deploy.exporter.sources import (
    ACCEPTED,
    ACCEPTED_AT,
    DRAFTED,
    DRAFTED_AT,
    Counts,
    counts_itself,
    read_iteration_stats,
    read_trtllm_prometheus,
)

TOKENS, STEPS = "drafthouse_spec_tokens_total", "drafthouse_spec_steps_total"
SOURCE = "drafthouse_acceptance_source_info"
UP = "drafthouse_exporter_target_up"
PROBES = "drafthouse_probes_total"
FIRST_TOKEN, PROBE_TIME = "drafthouse_probe_first_token_seconds", "drafthouse_probe_seconds"
DRAFT_LENGTH = "drafthouse_configured_draft_length"


@dataclass(frozen=True)
class Targets:
    """Addresses to ask; "" is not asked."""

    triton_metrics: str = ""
    trtllm_serve: str = ""


class Collector:
    """Reads acceptance once a `poll`; the families keep the last state."""

    def __init__(self, targets: Targets, probe: Probe | None) -> None:
        """`probe` None: no request is ever sent."""
        self.families = Families()
        self._targets, self._probe = targets, probe
        self._draft_steps = (
            0  # of probes: neither their first step (prefill) nor their last (cut by the length)
        )
        self._accepted_at: dict[int, int] = {}
        self._complaint = ""
        self._polled = time.monotonic()
        self._declare()
        if probe and probe.draft_length:
            self.families.set(DRAFT_LENGTH, probe.draft_length)

    def run(self, interval: float, stopped: threading.Event) -> None:
        """Poll every `interval` seconds until `stopped` is set."""
        while not stopped.is_set():
            try:
                self.poll()
                self._polled = time.monotonic()
            except Exception as error:  # whatever a server answers: the next reading may be better
                print(f"a reading failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            stopped.wait(interval)

    @property
    def age(self) -> float:
        """Seconds since the last reading has ended, or since there has been none."""
        return time.monotonic() - self._polled

    def poll(self) -> str:
        """Read the best source that answers; its name, "none" if none does."""
        complaints: list[str] = []
        source = self._read_trtllm_serve(complaints) or self._read_triton(complaints) or "none"
        self.families.only(SOURCE, 1, source=source)
        complaint = "; ".join(complaints) if source == "none" else ""
        if complaint and complaint != self._complaint:
            print(f"acceptance is not known: {complaint}", file=sys.stderr, flush=True)
        self._complaint = complaint
        return source

    def _read_trtllm_serve(self, complaints: list[str]) -> str:
        server = self._targets.trtllm_serve
        if not server:
            return ""
        answered, known = False, ""
        try:
            counts = read_trtllm_prometheus(server)
            answered = True
            if counts:
                self._export(counts, "trtllm_prometheus", cumulative=True)
                known = "trtllm_prometheus"
        except Unanswered as error:
            complaints.append(str(error))
        if not known:
            try:
                counts = read_iteration_stats(server)
                answered = True
                if counts:
                    self._export(counts, "iteration_stats", cumulative=False)
                if self.families.value(STEPS, source="iteration_stats") is not None:
                    known = "iteration_stats"  # also while nobody asks it anything
            except Unanswered as error:
                complaints.append(str(error))
        self.families.set(UP, float(answered), target="trtllm_serve")
        return known

    def _read_triton(self, complaints: list[str]) -> str:
        if self._targets.triton_metrics:
            try:
                itself = counts_itself(self._targets.triton_metrics)
                self.families.set(UP, 1, target="triton")
                if itself:
                    return "engine"
            except Unanswered as error:
                self.families.set(UP, 0, target="triton")
                complaints.append(str(error))
                return ""
        return self._send_probe(self._probe, complaints) if self._probe else ""

    def _send_probe(self, probe: Probe, complaints: list[str]) -> str:
        try:
            answer = probe.send()
        except (Unanswered, Unmeasured) as error:
            self.families.add(
                PROBES, 1, outcome="unanswered" if isinstance(error, Unanswered) else "unmeasured"
            )
            for name in (FIRST_TOKEN, PROBE_TIME):
                self.families.clear(name)
            complaints.append(str(error))
            return ""
        self.families.add(PROBES, 1, outcome="measured")
        self.families.set(FIRST_TOKEN, answer.first_token_seconds)
        self.families.set(PROBE_TIME, answer.seconds)
        source = "stream_chunks" if answer.drafted is None else "perf_metrics"
        self._export(
            Counts(answer.tokens, answer.steps, answer.drafted, answer.accepted), source, cumulative=False
        )
        self._export_positions(answer, source)
        return source

    def _export_positions(self, answer: Answer, source: str) -> None:
        """Every decode step of a probe drafts as many tokens as the longest did, as far as can be seen from outside."""
        steps = answer.chunks[1:-1]
        self._draft_steps += len(steps)
        for position in range(1, max(steps, default=1)):
            self._accepted_at.setdefault(position, 0)
        for position in self._accepted_at:
            self._accepted_at[position] += accepted_at(steps, position)
            labels = {"source": source, "token_position": str(position)}
            self.families.set(DRAFTED_AT, self._draft_steps, **labels)
            self.families.set(ACCEPTED_AT, self._accepted_at[position], **labels)

    def _export(self, counts: Counts, source: str, cumulative: bool) -> None:
        write = self.families.set if cumulative else self.families.add
        totals = {
            TOKENS: counts.tokens,
            STEPS: counts.steps,
            DRAFTED: counts.drafted,
            ACCEPTED: counts.accepted,
        }
        for name, value in totals.items():
            if value is not None:
                write(name, value, source=source)
        for name, by_position in ((DRAFTED_AT, counts.drafted_at), (ACCEPTED_AT, counts.accepted_at)):
            for position, value in by_position.items():
                write(name, value, source=source, token_position=str(position))

    def _declare(self) -> None:
        counters = {
            TOKENS: "Tokens that the counted steps emitted; over steps it is the acceptance length",
            STEPS: "Decode steps that were counted",
            DRAFTED: "Drafted tokens",
            ACCEPTED: "Drafted tokens that were accepted",
            DRAFTED_AT: "Steps whose draft reached this position",
            ACCEPTED_AT: "Steps whose draft was accepted up to this position",
            PROBES: "Probe requests by outcome",
        }
        gauges = {
            SOURCE: "Where acceptance comes from; none: it is not known",
            UP: "Whether a server that is asked for statistics answers",
            FIRST_TOKEN: "Time to the first token of the last probe",
            PROBE_TIME: "Time of the whole last probe",
            DRAFT_LENGTH: "Draft length that the exporter was told is configured",
        }
        for name, description in counters.items():
            self.families.declare(name, "counter", description)
        for name, description in gauges.items():
            self.families.declare(name, "gauge", description)
