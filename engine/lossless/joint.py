"""Joint distribution of whole sequences against enumeration: does verification sample the target, exactly?

A toy target and drafter run through the engine's own verification, with its own random numbers, a few
hundred thousand times; the counts of all sequences are compared with the target's probabilities, which are
known. Sequences, not tokens: an error in what carries over from one position or step to the next may leave
every marginal as it should be. Beside each scenario, verifiers with a fault in them go through the same
test with fewer runs, and must be rejected.

Example:
    for check in joint_checks(runs=200_000, control_runs=20_000, alpha=1e-3, seed=0):  # half a minute
        print(check.scenario, check.fault, check.fit.p_value, "ok" if check.passed else "FAILED")
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.lossless.faults import Fault, Verifier, faulty_verifier
from engine.lossless.statistics import GoodnessOfFit, goodness_of_fit
from engine.lossless.toy import Scenario, ToyModel
from engine.request import SamplingParams
from engine.sampling import RequestRandom
from engine.verification import verify_sampling
from speculators.tree import ROOT

# Runs that share one request's generators, since making these costs more than a run.
_RUNS_PER_SEED = 64

_BRANCHING = (ROOT, ROOT, 0, 0, 1)
_CHAIN = (ROOT, 0, 1)
SCENARIOS: tuple[tuple[Scenario, tuple[Fault, ...]], ...] = (
    (
        Scenario("chain, drawn", True, _CHAIN, 5, 4, SamplingParams(temperature=0.8)),
        (Fault.NOT_SUBTRACTED, Fault.BONUS_FROM_DRAFT, Fault.REUSED_NUMBERS),
    ),
    (
        Scenario("tree, drawn", True, _BRANCHING, 5, 4, SamplingParams(temperature=1.3, top_k=4)),
        (
            Fault.NOT_SUBTRACTED,
            Fault.NOT_RENORMALISED,
            Fault.NOT_REMOVED,
            Fault.BONUS_FROM_DRAFT,
            Fault.REUSED_NUMBERS,
        ),
    ),
    (
        Scenario("tree, point masses", False, _BRANCHING, 6, 3, SamplingParams(temperature=1.1, top_p=0.9)),
        (Fault.NOT_SUBTRACTED, Fault.NOT_RENORMALISED, Fault.REUSED_NUMBERS),
    ),
)


@dataclass(frozen=True, slots=True)
class JointCheck:
    """One scenario, run with the engine's verification or with a faulty one.

    Attributes:
        scenario: how drafts were made.
        fault: what was wrong with the verifier on purpose; None for the engine's own.
        fit: the counts against the target's joint distribution.
        acceptance_length: tokens emitted per step (those cut off at the end of a sequence included).
    """

    scenario: str
    fault: Fault | None
    fit: GoodnessOfFit
    acceptance_length: float

    @property
    def expect_rejected(self) -> bool:
        """Faulty verifiers have to be rejected, the engine's own must not be."""
        return self.fault is not None

    @property
    def passed(self) -> bool:
        """Whether the outcome is the one expected."""
        return self.fit.rejected == self.expect_rejected


def joint_checks(runs: int, control_runs: int, alpha: float, seed: int) -> Iterator[JointCheck]:
    """Run all scenarios, each followed by its negative controls, and give each result as soon as it is there.

    Args:
        runs: sequences per scenario; 200,000 sees a deviation of about 0.5 % in total variation.
        control_runs: sequences per faulty verifier; 20,000 is enough for the faults listed.
        alpha: probability that a correct engine fails any of the scenarios (Bonferroni: each gets its share).
        seed: of the toy models and of all random numbers.
    """
    level = alpha / len(SCENARIOS)
    for index, (scenario, faults) in enumerate(SCENARIOS):
        model = ToyModel(scenario, seed + index)
        for fault in (None, *faults):
            sequences = runs if fault is None else control_runs
            counts, steps = simulate(model, sequences, seed + index, fault)
            fit = goodness_of_fit(counts, model.joint(), level)
            yield JointCheck(scenario.name, fault, fit, sequences * scenario.length / steps)


def simulate(model: ToyModel, runs: int, seed: int, fault: Fault | None) -> tuple[NDArray[np.int64], int]:
    """Count the sequences that come out of ``runs`` speculative generations.

    Returns:
        Counts ``[vocabulary ** length]`` in the order of ``ToyModel.joint``, and the number of steps taken.
    """
    vocabulary, length = model.scenario.vocabulary, model.scenario.length
    counts = np.zeros(vocabulary**length, np.int64)
    steps = 0
    for run in range(runs):
        if run % _RUNS_PER_SEED == 0:
            random = RequestRandom(seed * runs + run)
        verify: Verifier = verify_sampling if fault is None else faulty_verifier(fault)
        sequence: tuple[int, ...] = ()
        while len(sequence) < length:
            tree, probs = model.draft(sequence, random.draft)
            verdict = verify(tree, probs, random)
            sequence += (*[tree.tokens[node] for node in verdict.path], verdict.token)
            steps += 1
        cell = 0
        for token in sequence:
            cell = cell * vocabulary + token
        counts[cell] += 1
    return counts, steps
