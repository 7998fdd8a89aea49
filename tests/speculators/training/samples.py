"""Makes training data for tests: greedy answers of a tiny target, and a training directory that holds them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from speculators.data.samples import Sample, SampleFile
from speculators.training.provenance import target_hash
from speculators.training.target import FrozenTarget

PROMPT, ANSWER = 6, 26


def written_by(target: FrozenTarget, count: int) -> list[Sample]:
    """Samples whose answers the target wrote greedily, from prompts of six random tokens."""
    dice = random.Random(0)
    tokens = torch.tensor(
        [[dice.randrange(3, target.vocab_size) for _ in range(PROMPT)] for _ in range(count)]
    )
    with torch.no_grad():
        for _ in range(ANSWER):
            logits = target.model(input_ids=tokens).logits[:, -1]
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    spans = [(PROMPT, PROMPT + ANSWER)]
    return [Sample(number, "test", (), row, spans, greedy=True) for number, row in enumerate(tokens.tolist())]


def ignore(*arguments: object) -> None:
    """A report that nobody reads."""


def write_directory(directory: Path, source: Path, samples: Sequence[Sample]) -> None:
    """`samples.jsonl` and `target.json`, as `drafthouse train` leaves them."""
    directory.mkdir(parents=True, exist_ok=True)
    list(SampleFile(directory / "samples.jsonl").append(iter(samples)))
    content = {"name": source.name, "sha256": target_hash(source)}
    (directory / "target.json").write_text(json.dumps(content))
