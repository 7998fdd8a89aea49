"""Makes training data for tests: greedy answers of a tiny target, and a training directory that holds them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from deployments.training import TrainingSpec
from speculators.data.samples import Sample, SampleFile
from speculators.training.families import FAMILIES, Ingredients, layers_read
from speculators.training.features import OnlineFeatures
from speculators.training.provenance import target_hash
from speculators.training.starts import open_start
from speculators.training.target import FrozenTarget
from speculators.training.trainee import Trainee

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


def begun_from(
    method: str, section: TrainingSpec, target: FrozenTarget, samples: list[Sample]
) -> tuple[Trainee, OnlineFeatures]:
    """The trainee that begins from the checkpoint that a section names, and the features that it reads."""
    start, section = open_start(method, section, target)
    source = OnlineFeatures(target, layers_read(section, target.num_layers))
    given = Ingredients(target, torch.from_numpy(start.kept), samples, source, section, start)
    return FAMILIES[method](given), source


def ignore(*arguments: object) -> None:
    """A report that nobody reads."""


def write_directory(directory: Path, source: Path, samples: Sequence[Sample]) -> None:
    """`samples.jsonl` and `target.json`, as `drafthouse train` leaves them."""
    directory.mkdir(parents=True, exist_ok=True)
    list(SampleFile(directory / "samples.jsonl").append(iter(samples)))
    content = {"name": source.name, "sha256": target_hash(source)}
    (directory / "target.json").write_text(json.dumps(content))
