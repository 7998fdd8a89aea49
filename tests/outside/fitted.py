"""A P-EAGLE drafter that knows the answers: begun and written as by `drafthouse train`, fitted to a few texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from deployments.training import TrainingSpec
from speculators.data.samples import Sample
from speculators.training.families import FAMILIES, Ingredients, layers_read
from speculators.training.features import OnlineFeatures, collate
from speculators.training.target import FrozenTarget
from speculators.training.vocabulary import draft_vocabulary

_STEPS, _RATE = 80, 1e-3
_DRAFT_VOCABULARY = 1024


def fitted_peagle(
    model: Path, texts: Sequence[tuple[Sequence[int], Sequence[int]]], depth: int, directory: Path
) -> Path:
    """The checkpoint, in a new directory, of a drafter that was shown prompts and the model's answers to them."""
    target = FrozenTarget(model, torch.device("cpu"))
    training = TrainingSpec(depth=depth, labels="hard")
    samples = [
        Sample(number, "fitted", (), [*prompt, *answer], [(len(prompt), len(prompt) + len(answer))])
        for number, (prompt, answer) in enumerate(texts)
    ]
    source = OnlineFeatures(target, layers_read(training, target.num_layers))
    kept = draft_vocabulary(samples, _DRAFT_VOCABULARY, target.vocab_size)
    torch.manual_seed(0)
    trainee = FAMILIES["peagle"](Ingredients(target, kept, samples, source, training))
    batch = collate(samples, source, everything=False)
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=_RATE)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss, _ = trainee(batch)
        loss.backward()
        optimizer.step()
    directory.mkdir()
    trainee.save(directory)
    return directory
