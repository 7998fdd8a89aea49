"""Shapes of models, without their weights, and what of them is measured."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of Llama's architecture."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    rope_base: float = 500_000.0

    @property
    def weights(self) -> int:
        """Numbers that a step reads: all but the embedding, of which it reads a few rows."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        norms = (2 * self.layers + 1) * self.hidden
        mlp = 3 * self.hidden * self.intermediate
        return self.layers * (attention + mlp) + norms + self.vocabulary * self.hidden

    @property
    def cached(self) -> int:
        """Numbers in the cache for each token."""
        return 2 * self.layers * self.kv_heads * self.head_size


@dataclass(frozen=True, slots=True)
class Regime:
    """Drafts on a window of the cache (MagicDec, arXiv 2408.11049), verified on all of it.

    Attributes:
        sinks: first rows of a request that a draft reads beside the newest.
    """

    model: ModelShape
    batch: int
    context: int
    window: int
    sinks: int


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured: every model by every batch, context and number of rows, and the regime.

    Attributes:
        seconds: for all of it.
        rounds: of the alternating measurements.
        copied: bytes of the buffer whose copying tells the bandwidth.
    """

    models: Sequence[ModelShape]
    batches: Sequence[int]
    rows: Sequence[int]
    contexts: Sequence[int]
    regime: Regime
    seconds: float
    rounds: int
    copied: int


# The 8B shape is that of Llama 3.1, the 13B shape that of Llama 2, and the 1B shape that of Llama 3.2.
_1B = ModelShape("1B", 16, 2048, 32, 8, 64, 8192, 128_256)
_8B = ModelShape("8B", 32, 4096, 32, 8, 128, 14_336, 128_256)
_13B = ModelShape("13B", 40, 5120, 40, 40, 128, 13_824, 32_000, 10_000.0)
_TOY = ModelShape("toy", 2, 64, 4, 2, 16, 128, 256)

REAL = Workload(
    (_8B, _1B, _13B),
    batches=(1, 8, 32),
    rows=(1, 2, 4, 8),
    contexts=(256, 2048, 8192, 32_768),
    regime=Regime(_8B, batch=32, context=32_768, window=512, sinks=32),
    seconds=360.0,
    rounds=7,
    copied=4 << 30,
)
TOY = Workload(
    (_TOY,),
    batches=(1, 2),
    rows=(1, 2, 4),
    contexts=(64, 200),
    regime=Regime(_TOY, batch=2, context=256, window=64, sinks=32),
    seconds=3600.0,
    rounds=3,
    copied=4 << 20,
)
