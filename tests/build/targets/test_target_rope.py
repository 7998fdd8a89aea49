"""Properties of the rotary frequencies that hold by definition, whatever the implementation."""

import numpy as np
import pytest

from build.targets.rope import Llama3Scaling, YarnScaling, inverse_frequencies, parse_scaling

THETA, HEAD_DIM = 10_000.0, 64


def test_plain_frequencies_fall_geometrically_from_one() -> None:
    frequencies = inverse_frequencies(THETA, HEAD_DIM, None)
    assert frequencies.shape == (32,)
    assert frequencies[0] == 1.0
    np.testing.assert_allclose(frequencies[1:] / frequencies[:-1], THETA ** (-2 / HEAD_DIM))


def test_linear_scaling_equals_smaller_positions() -> None:
    scaling = parse_scaling({"rope_type": "linear", "factor": 4.0}, 4096)
    np.testing.assert_allclose(
        1000 * inverse_frequencies(THETA, HEAD_DIM, scaling), 250 * inverse_frequencies(THETA, HEAD_DIM, None)
    )


def test_llama3_keeps_short_waves_divides_long_ones_and_blends_between() -> None:
    rule = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    plain = inverse_frequencies(500_000.0, 128, None)
    ratio = plain / inverse_frequencies(500_000.0, 128, rule)
    wavelengths = 2 * np.pi / plain
    np.testing.assert_allclose(ratio[wavelengths < 8192 / 4], 1.0)
    np.testing.assert_allclose(ratio[wavelengths > 8192], 8.0)
    between = ratio[(wavelengths > 8192 / 4) & (wavelengths < 8192)]
    assert len(between) > 2
    assert np.all((between > 1.0) & (between < 8.0))
    assert np.all(np.diff(ratio) >= 0)


def test_yarn_extrapolates_fast_pairs_and_interpolates_slow_ones() -> None:
    rule = YarnScaling(4.0, 2048, attention_scaling=1.0)
    ratio = inverse_frequencies(THETA, HEAD_DIM, None) / inverse_frequencies(THETA, HEAD_DIM, rule)
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(4.0)
    assert np.all(np.diff(ratio) >= -1e-12)


def test_original_context_is_the_models_own_where_it_is_not_given() -> None:
    scaling = parse_scaling({"rope_type": "yarn", "factor": 2.0}, 4096)
    assert isinstance(scaling, YarnScaling)
    assert scaling.original_max_position_embeddings == 4096


def test_nothing_to_scale_is_none() -> None:
    assert parse_scaling(None, 4096) is None
    assert parse_scaling({}, 4096) is None
    assert parse_scaling({"rope_type": "default", "rope_theta": 1e4}, 4096) is None
