"""Rotary position embedding: inverse frequencies and their context-extension rules.

A rotary embedding turns the pair (x_i, x_{i+d/2}) of each head by the angle `position * frequency_i`. Models
that were stretched beyond their training context scale those frequencies; three rules occur in the Llama
family: linear position interpolation, the piecewise rule of Llama 3.1, and YaRN. The rules that depend on the
length of the running sequence (`dynamic`, `longrope`) have no fixed table and are refused by name.

Example::

    scaling = parse_scaling({"rope_type": "linear", "factor": 2.0}, max_position_embeddings=4096)
    frequencies = inverse_frequencies(theta=10000.0, head_dim=64, scaling=scaling)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build.targets.errors import TargetError, UnsupportedModelError

Frequencies = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023, arXiv 2306.15595): every frequency divided by `factor`."""

    factor: float

    @property
    def attention_scaling(self) -> float:
        """Factor on cos and sin; 1 for this rule."""
        return 1.0

    def apply(self, frequencies: Frequencies, theta: float) -> Frequencies:
        """Scaled frequencies, same shape [head_dim / 2]."""
        return frequencies / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """The rule of Llama 3.1 (`apply_scaling` in Meta's llama-models, July 2024).

    Wavelengths longer than `original / low` are divided by `factor`, those shorter than `original / high`
    stay, and the band between is blended linearly in `original / wavelength`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    @property
    def attention_scaling(self) -> float:
        """Factor on cos and sin; 1 for this rule."""
        return 1.0

    def apply(self, frequencies: Frequencies, theta: float) -> Frequencies:
        """Scaled frequencies, same shape [head_dim / 2]."""
        turns = self.original_max_position_embeddings * frequencies / (2 * np.pi)
        kept = np.clip(
            (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0
        )
        return kept * frequencies + (1.0 - kept) * frequencies / self.factor


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv 2309.00071, section 3): NTK-by-parts interpolation and an attention
    temperature.

    `attention_scaling` is the square root of the paper's 1/t, since it is put on both queries and keys.
    """

    factor: float
    original_max_position_embeddings: int
    attention_scaling: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def apply(self, frequencies: Frequencies, theta: float) -> Frequencies:
        """Scaled frequencies, same shape [head_dim / 2]."""
        half = len(frequencies)
        low, high = self._pair_of(self.beta_fast, half, theta), self._pair_of(self.beta_slow, half, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        # A ramp of no width would divide by zero; the step it stands for is the limit of a very steep one.
        ramp: Frequencies = np.clip((np.arange(half) - low) / (high - low if high != low else 1e-3), 0.0, 1.0)
        scaled: Frequencies = frequencies * (1.0 - ramp) + frequencies / self.factor * ramp
        return scaled

    def _pair_of(self, turns: float, half: int, theta: float) -> float:
        """Index of the pair (a real number) that makes `turns` turns over the original context."""
        return (
            half * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(theta)
        )


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, slots=True)
class Rope:
    """One rotary embedding."""

    theta: float = 10_000.0
    scaling: RopeScaling | None = None

    @property
    def attention_scaling(self) -> float:
        """Factor on both cos and sin (YaRN's temperature; 1 otherwise)."""
        return 1.0 if self.scaling is None else self.scaling.attention_scaling

    def inverse_frequencies(self, head_dim: int) -> Frequencies:
        """Radians per position of the rotated pairs (i, i + head_dim / 2): [head_dim / 2]."""
        return inverse_frequencies(self.theta, head_dim, self.scaling)


# Keys that say nothing about the frequencies themselves.
_NEUTRAL_KEYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"})
_KEYS = {
    "default": frozenset({"factor"}),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        {"factor", "original_max_position_embeddings", "attention_factor", "mscale", "mscale_all_dim"}
        | {"beta_fast", "beta_slow", "truncate"}
    ),
}


def inverse_frequencies(theta: float, head_dim: int, scaling: RopeScaling | None) -> Frequencies:
    """Radians per position of each rotated pair (arXiv 2104.09864, section 3.2.2): [head_dim / 2]."""
    frequencies: Frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return frequencies if scaling is None else scaling.apply(frequencies, theta)


def parse_scaling(settings: Mapping[str, Any] | None, max_position_embeddings: int) -> RopeScaling | None:
    """Read `rope_scaling` (Transformers 4) or `rope_parameters` (Transformers 5); None where nothing is
    scaled.

    Raises:
        UnsupportedModelError: a rule, or a setting of a rule, that is not implemented.
        TargetError: a setting is missing or impossible.
    """
    if not settings:
        return None
    kind = str(settings.get("rope_type") or settings.get("type") or "default")
    if kind not in _KEYS:
        raise UnsupportedModelError(
            f"config.json: rope type {kind!r} is not supported; it must be one of {', '.join(_KEYS)}"
        )
    _refuse_unknown(kind, settings)
    if kind == "default":
        return None
    factor = _number(settings, "factor", minimum=1.0)
    if kind == "linear":
        return LinearScaling(factor)
    original = int(
        _number(settings, "original_max_position_embeddings", 1.0, default=max_position_embeddings)
    )
    return _llama3(settings, factor, original) if kind == "llama3" else _yarn(settings, factor, original)


def _llama3(settings: Mapping[str, Any], factor: float, original: int) -> Llama3Scaling:
    low = _number(settings, "low_freq_factor", minimum=0.0)
    high = _number(settings, "high_freq_factor", minimum=0.0)
    if high <= low:
        raise TargetError(f"config.json: rope high_freq_factor {high} must be above low_freq_factor {low}")
    return Llama3Scaling(factor, low, high, original)


def _yarn(settings: Mapping[str, Any], factor: float, original: int) -> YarnScaling:
    attention = settings.get("attention_factor")
    if attention is None:
        attention = _yarn_attention_factor(factor, settings.get("mscale"), settings.get("mscale_all_dim"))
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        attention_scaling=float(attention),
        beta_fast=_number(settings, "beta_fast", 0.0, default=32.0),
        beta_slow=_number(settings, "beta_slow", 0.0, default=1.0),
        truncate=bool(settings.get("truncate", True)),
    )


def _yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """Equation 22 of the YaRN paper, sqrt(1/t) = 0.1 ln(s) + 1; DeepSeek's two `mscale` weight it."""

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return temperature(mscale) / temperature(mscale_all_dim)
    return temperature(1.0)


def _refuse_unknown(kind: str, settings: Mapping[str, Any]) -> None:
    if settings.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedModelError(
            f"config.json: partial_rotary_factor {settings['partial_rotary_factor']} is not supported; "
            "it must be 1"
        )
    unknown = sorted(set(settings) - _KEYS[kind] - _NEUTRAL_KEYS)
    if unknown:
        raise UnsupportedModelError(
            f"config.json: rope type {kind!r} has settings that are not supported: {', '.join(unknown)}; "
            f"known are {', '.join(sorted(_KEYS[kind]))}"
        )


def _number(settings: Mapping[str, Any], key: str, minimum: float, default: float | None = None) -> float:
    value = settings.get(key)
    if value is None:
        value = default
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value < minimum
    ):
        raise TargetError(
            f"config.json: rope {key} is {value!r}; it must be a number of at least {minimum:g}"
        )
    return float(value)
