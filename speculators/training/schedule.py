"""Order of the data and course of the learning rate: both follow from seed and step, so a run can resume anywhere."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from speculators.data.samples import Sample

_WINDOW = 256


@dataclass(frozen=True, slots=True)
class Schedule:
    """Micro-batches of a run.

    Attributes:
        lengths: tokens of each sample.
        batch_tokens: padded tokens of a micro-batch, at most (a longer sample is one of its own).
        group: micro-batches of a step: gradient accumulation times processes.
        seed: seed of the order.
    """

    lengths: tuple[int, ...]
    batch_tokens: int
    group: int
    seed: int

    def epoch(self, number: int) -> list[list[list[int]]]:
        """Steps of an epoch; each is `group` micro-batches of sample indices.

        Samples are shuffled, then sorted by length within windows so that little is padded. The last micro-batches
        that fill no step are left out.
        """
        dice = random.Random(f"{self.seed}:{number}")
        order = list(range(len(self.lengths)))
        dice.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), _WINDOW):
            window = sorted(order[start : start + _WINDOW], key=self.lengths.__getitem__)
            batches.extend(self._packed(window))
        dice.shuffle(batches)
        whole = len(batches) // self.group * self.group
        return [batches[start : start + self.group] for start in range(0, whole, self.group)]

    def _packed(self, window: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        for index in window:  # ascending length: the newest is the longest
            if batches and self.lengths[index] * (len(batches[-1]) + 1) <= self.batch_tokens:
                batches[-1].append(index)
            else:
                batches.append([index])
        return batches


def lengths_of(samples: Sequence[Sample]) -> tuple[int, ...]:
    """Tokens of each sample."""
    return tuple(len(sample.tokens) for sample in samples)


def learning_rate(step: int, steps: int, warmup: float, floor: float) -> float:
    """Factor of the learning rate: linear warm-up over a share of the steps, then cosine down to `floor`."""
    begin = max(1, round(steps * warmup))
    if step < begin:
        return (step + 1) / begin
    progress = (step - begin) / max(1, steps - begin)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
