"""Short steps are padded to shapes that last, and padding is seen by nobody."""

import numpy as np
import pytest

from engine.buckets import bucket_of, buckets_for
from engine.runner import SequenceInput
from tests.runners import openvino_runner
from tests.tiny import THREADS, TinyTargets


@pytest.fixture(scope="module", autouse=True)
def graphs_when_used() -> None:
    """Here all are compiled and made ready before they are used, as when the engine serves."""


def test_large_weights_have_few_buckets_and_plain_decoding_comes_first() -> None:
    megabytes = 1 << 20
    assert buckets_for(136 * megabytes) == [2, 4, 6, 8, 12, 16]
    assert buckets_for(600 * megabytes) == [2, 4, 8]
    assert buckets_for(1500 * megabytes) == [2]
    assert buckets_for(8000 * megabytes) == []


@pytest.mark.parametrize(("tokens", "bucket"), [(1, 2), (2, 2), (3, 8), (8, 8), (9, None)])
def test_a_step_takes_the_smallest_bucket_that_holds_it(tokens: int, bucket: int | None) -> None:
    assert bucket_of(tokens, [2, 8]) == bucket


@pytest.mark.parametrize("buckets", [[], [2, 8], [2, 4, 6, 8, 12, 16]])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_padding_is_seen_by_nobody(
    precision: str, buckets: list[int], tiny_targets: TinyTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.openvino_graphs.buckets_for", lambda num_bytes: buckets)
    engine = tiny_targets.engine("llama", precision)
    runner = openvino_runner(engine, num_blocks=8, threads=THREADS, hidden_layers=(1,))
    tokens = list(range(5, 45))
    runner.forward([SequenceInput(tokens, 0, [0, 1])])  # more than any bucket holds
    exact = runner.forward([SequenceInput(tokens, 0, [2, 3])]).copy(), runner.hidden().copy()
    for count in range(1, 18):
        found = runner.forward([SequenceInput(tokens[:count], 0, [4])]).copy(), runner.hidden().copy()
        for padded, expected in zip(found, exact, strict=True):
            assert len(padded) == count
            assert np.array_equal(padded, expected[:count])
