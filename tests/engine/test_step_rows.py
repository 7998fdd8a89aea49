"""Steps are filled up to a shape that lasts, and what is filled in is seen by nobody."""

import numpy as np

from engine.openvino_runner import OpenVinoRunner
from engine.runner import SequenceInput
from engine.step_rows import StepRows
from tests.tiny import THREADS, TinyTargets


def shapes(tokens: list[int]) -> list[int]:
    rows = StepRows()
    return [rows.of_step(count) for count in tokens]


def test_short_steps_keep_the_shape_and_many_of_them_change_it() -> None:
    assert shapes([5, 1, 5, 2, 5]) == [5] * 5
    assert shapes([5, 1, 1, 1, 1, 1, 1]) == [5, 5, 5, 5, 2, 2, 2]
    assert shapes([1, 8, 1, 1, 1]) == [2, 8, 8, 2, 2]


def test_long_steps_stay_as_they_are() -> None:
    assert shapes([256, 100, 33, 1, 40]) == [256, 100, 33, 2, 40]


def test_what_is_filled_in_is_seen_by_nobody(tiny_targets: TinyTargets) -> None:
    runner = OpenVinoRunner(
        tiny_targets.engine("llama", "int8"), num_blocks=8, threads=THREADS, hidden_layers=(1,)
    )
    chain, single = SequenceInput([5, 6, 7, 8, 9], 0, [0]), SequenceInput([5], 0, [1])
    alone = runner.forward([single]).copy(), runner.hidden().copy()
    runner.forward([chain])
    after = runner.forward([single]).copy(), runner.hidden().copy()  # now in the shape of five
    for one, other in zip(alone, after, strict=True):
        assert len(one) == len(other) == 1
        assert np.array_equal(one, other)
