"""Step cost by context length, batch and verified tokens, beside the bytes that a step has to read.

Example::

    costs = measure_contexts(Path("runs/engines/smollm2-135m-int8"), contexts=(256, 2000), rounds=3)
    print(costs.ratio(2000, 1, 8))
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from deployments.engines import EmbeddedEngine
from engine.deployment import open_runner
from engine.manifest import MODEL_NAME, EngineError, load_manifest
from engine.native.library import row_bytes
from engine.runner import BLOCK_SIZE
from planner.bench.measure import MOST_TOKENS, Bandwidth, VerificationStep, alternate, cores, fill_cache

BATCHES = (1, 4, 8)
TOKENS = (1, 2, 4, 8)
_ENGINE = EmbeddedEngine()
_BANDWIDTH = "bandwidth GB/s"
_READING = 0.3  # about the share of all that filling the cache takes


@dataclass(frozen=True, slots=True)
class ContextCosts:
    """Milliseconds of a step in each round by (context, batch, tokens of each request), and what bounds it."""

    engine: str
    weight_bytes: int
    token_bytes: int
    """Of the cache."""
    bandwidth: Sequence[float]
    """GB/s in each round."""
    rounds: Mapping[tuple[int, int, int], Sequence[float]]
    attention: Mapping[str, str]
    environment: Mapping[str, Any] = field(default_factory=dict)

    def median(self, context: int, batch: int, tokens: int) -> float:
        """Over the rounds."""
        return statistics.median(self.rounds[context, batch, tokens])

    def ratio(self, context: int, batch: int, tokens: int) -> float:
        """To a step of one token each, median of the rounds' own ratios."""
        pairs = zip(self.rounds[context, batch, tokens], self.rounds[context, batch, 1], strict=True)
        return statistics.median(value / base for value, base in pairs)

    def bound_ms(self, context: int, batch: int) -> float:
        """Least time of a step: reading the weights and every request's cache once."""
        read = self.weight_bytes + batch * context * self.token_bytes
        return read / (statistics.median(self.bandwidth) * 1e9) * 1e3

    def to_json(self) -> str:
        """One line for programs."""
        steps = [
            {
                "context": context,
                "batch": batch,
                "tokens": tokens,
                "ms": [round(value, 4) for value in values],
                "bound_ms": round(self.bound_ms(context, batch), 3),
            }
            for (context, batch, tokens), values in self.rounds.items()
        ]
        return json.dumps(
            {
                "engine": self.engine,
                "weight_bytes": self.weight_bytes,
                "cache_bytes_per_token": self.token_bytes,
                "bandwidth_gb_s": [round(value, 2) for value in self.bandwidth],
                "attention": dict(self.attention),
                "steps": steps,
                "environment": dict(self.environment),
            }
        )


def measure_contexts(
    engine_directory: Path,
    *,
    contexts: Sequence[int],
    rounds: int,
    engine: EmbeddedEngine = _ENGINE,
    provenance: Mapping[str, Any] | None = None,
    report: Callable[[str, float], None] = lambda line, share: None,
) -> ContextCosts:
    """Measure every combination once a round.

    Args:
        engine_directory: a compiled engine.
        contexts: tokens in the cache of each request.
        rounds: how often; one more warms up.
        engine: what runs it.
        provenance: what to write beside the figures.
        report: gets what is measured, and the share of all that is done.

    Raises:
        EngineError: the engine cannot be loaded, or a context does not fit it.
    """
    manifest, longest = load_manifest(engine_directory), max(contexts)
    most = manifest.max_sequence_length - MOST_TOKENS
    if not 1 <= min(contexts) <= longest <= most:
        raise EngineError(
            f"contexts must be 1 to {most} tokens; {engine_directory} was compiled for {manifest.max_sequence_length} "
            "(engine.max_sequence_length)"
        )
    blocks = -(-(longest + MOST_TOKENS) // BLOCK_SIZE)
    runner = open_runner(engine, engine_directory, num_blocks=blocks * BATCHES[-1])
    for row in range(BATCHES[-1]):
        report(
            f"reading {longest} tokens into request {row + 1} of {BATCHES[-1]}",
            _READING * row / BATCHES[-1],
        )
        fill_cache(runner, [row], longest)
    weight_bytes = (engine_directory / f"{MODEL_NAME}.data").stat().st_size
    names = {
        (context, batch, tokens): f"{context} tokens of context, batch {batch}, {tokens} each"
        for context in contexts
        for batch in BATCHES
        for tokens in TOKENS
    }
    steps = {
        name: VerificationStep(runner, batch, tokens, context, longest)
        for (context, batch, tokens), name in names.items()
    }
    bandwidth = Bandwidth(weight_bytes, engine.threads or cores())
    figures = alternate(
        {_BANDWIDTH: bandwidth, **steps},
        rounds,
        lambda line, share: report(line, _READING + (1 - _READING) * share),
    )
    attention = runner.graph.attention
    environment = {**(provenance or {}), "engine_versions": manifest.versions}
    token_bytes = row_bytes(manifest.head_dim, attention["kv_cache_precision"])
    token_bytes *= 2 * manifest.num_layers * manifest.num_kv_heads
    return ContextCosts(
        engine_directory.name,
        weight_bytes,
        token_bytes,
        figures[_BANDWIDTH],
        {key: figures[name] for key, name in names.items()},
        attention,
        environment,
    )


def context_table(costs: ContextCosts) -> Table:
    """Milliseconds of a step of one token each, with its share of the bound, and the ratios of more tokens to it."""
    table = Table("context", header_style="bold")
    for heading in ("batch", "ms, 1 token", "bound ms", "share", *(f"x {tokens}" for tokens in TOKENS[1:])):
        table.add_column(heading, justify="right", no_wrap=True)
    for context, batch in dict.fromkeys(key[:2] for key in costs.rounds):
        one, bound = costs.median(context, batch, 1), costs.bound_ms(context, batch)
        ratios = (f"{costs.ratio(context, batch, tokens):.2f}" for tokens in TOKENS[1:])
        table.add_row(str(context), str(batch), f"{one:.2f}", f"{bound:.2f}", f"{bound / one:.0%}", *ratios)
    table.caption = (
        f"attention: {', '.join(costs.attention.values())}; {costs.weight_bytes / 1e6:.0f} MB of weights and "
        f"{costs.token_bytes} B of cache a token at {statistics.median(costs.bandwidth):.1f} GB/s"
    )
    return table
