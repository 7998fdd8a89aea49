"""The joint test accepts the engine's verification and rejects every faulty one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from engine.lossless.joint import SCENARIOS, JointCheck, joint_checks
from engine.lossless.toy import ToyModel
from engine.sampling import RequestRandom
from tests.engine.branches import Branches, exact_distribution


@pytest.fixture(scope="module")
def checks() -> list[JointCheck]:
    return list(joint_checks(runs=40_000, control_runs=10_000, alpha=1e-3, seed=11))


def test_the_engine_is_accepted_and_every_fault_is_rejected(checks: list[JointCheck]) -> None:
    assert [(check.scenario, check.fault) for check in checks if not check.passed] == []


def test_every_scenario_has_controls_and_drafts_that_are_accepted(checks: list[JointCheck]) -> None:
    for scenario, faults in SCENARIOS:
        of_scenario = [check for check in checks if check.scenario == scenario.name]
        assert [check.fault for check in of_scenario] == [None, *faults]
        assert faults
        assert of_scenario[0].acceptance_length > 1.1


@pytest.mark.parametrize("index", range(len(SCENARIOS)), ids=[scenario.name for scenario, _ in SCENARIOS])
def test_the_expected_joint_is_that_of_plain_sampling(index: int) -> None:
    """What the counts are compared with, found a second time by taking every branch of plain decoding."""
    scenario = SCENARIOS[index][0]
    model = ToyModel(scenario, seed=3)

    def plain(branches: Branches) -> tuple[int, ...]:
        sequence: tuple[int, ...] = ()
        while len(sequence) < scenario.length:
            _, rows = model.draft(sequence, RequestRandom(0).draft)
            sequence += (branches.choose(rows[0]),)
        return sequence

    sequences = itertools.product(range(scenario.vocabulary), repeat=scenario.length)
    found = exact_distribution(plain)
    joint = model.joint()
    assert joint.sum() == pytest.approx(1)
    np.testing.assert_allclose([found.get(sequence, 0.0) for sequence in sequences], joint, atol=1e-12)


def test_drafts_stay_within_the_sequence_and_the_shape() -> None:
    for scenario, _ in SCENARIOS:
        model = ToyModel(scenario, seed=1)
        random = RequestRandom(1).draft
        context: tuple[int, ...] = ()
        for depth in range(scenario.length - 1, -1, -1):
            tree, rows = model.draft(context, random)
            assert max(tree.depths, default=0) <= depth
            assert len(rows) == len(tree) + 1
            assert (tree.proposals is not None) == scenario.drawn
            for node in range(-1, len(tree)):
                siblings = [tree.tokens[child] for child in tree.children(node)]
                assert len(set(siblings)) == len(siblings)
            context += (0,)


def test_both_models_have_tokens_of_probability_zero() -> None:
    impossible = [bool((ToyModel(scenario, seed=11).joint() == 0).any()) for scenario, _ in SCENARIOS]
    assert any(impossible)
