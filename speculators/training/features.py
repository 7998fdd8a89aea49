"""Hidden states of the target for every token of the data: computed while training, or once and kept on disk.

A cache directory holds `states.bin`, bfloat16 ``[tokens, states, H]`` sample after sample, and `index.json` with what
it was made from. It grows with the data file (which is only ever appended to): samples that are in it are not computed
again, and what a kill cut short is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from deployments.files.reading import read_json_object
from deployments.files.writing import write_json
from speculators.data.samples import Sample, content_hash
from speculators.training.errors import TrainingError
from speculators.training.target import FINAL, FrozenTarget

_INDEX, _STATES = "index.json", "states.bin"
_BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Batch:
    """B conversations, padded on the right to T tokens.

    Attributes:
        tokens: int64 ``[B, T]``, 0 in the padding.
        learned: bool ``[B, T]``, the tokens whose prediction is trained and measured.
        fused: bfloat16 ``[B, T, F, H]``, hidden states of the layers that the family reads.
        final: bfloat16 ``[B, T, H]``, states after the final norm.
    """

    tokens: torch.Tensor
    learned: torch.Tensor
    fused: torch.Tensor
    final: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(part.to(device) for part in (self.tokens, self.learned, self.fused, self.final)))


class FeatureSource(Protocol):
    """Gives the hidden states of samples."""

    def states(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """bfloat16 ``[tokens, F + 1, H]`` of each, the final state last."""


class OnlineFeatures:
    """Runs the target for every batch."""

    def __init__(self, target: FrozenTarget, layers: Sequence[int]) -> None:
        self._target = target
        self._wanted = (*layers, FINAL)

    def states(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """See `FeatureSource`."""
        states = self._target.states(_padded([sample.tokens for sample in samples]), self._wanted)
        return [rows[: len(sample.tokens)] for rows, sample in zip(states, samples, strict=True)]


class CachedFeatures:
    """Reads them from disk; `extend` computes those that are missing, `open` makes them available.

    Args:
        directory: the cache.
        layers: hidden states that are kept, besides the final one.
        width: H.
        subject: names target and data; a cache of something else is refused.

    Raises:
        TrainingError: the cache is damaged, or was made for something else.
    """

    def __init__(self, directory: Path, layers: Sequence[int], width: int, subject: str) -> None:
        self._directory, self._layers, self._width = directory, tuple(layers), width
        self._key = {"subject": subject, "layers": list(layers), "width": width}
        self._offsets: dict[int, tuple[int, int]] = {}
        self._data = np.zeros((0, len(layers) + 1, width), np.uint16)

    def extend(
        self, samples: Sequence[Sample], target: FrozenTarget, report: Callable[[int, int], None]
    ) -> None:
        """Compute what is missing; `report` gets the number of samples that are there and in all.

        Raises:
            TrainingError: see above; or the disk is full.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            done = self._recover(samples)
            with (self._directory / _STATES).open("ab") as file:
                for part in _batches(samples[done:]):
                    for states in OnlineFeatures(target, self._layers).states(part):
                        file.write(states.cpu().contiguous().view(torch.int16).numpy().tobytes())
                    file.flush()
                    done += len(part)
                    self._write_index(samples[:done])
                    report(done, len(samples))
        except OSError as error:
            raise TrainingError(
                f"{self._directory}: hidden states cannot be kept: {error.strerror}"
            ) from error

    def states(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """See `FeatureSource`."""
        found = []
        for sample in samples:
            start, end = self._offsets[sample.id]
            rows = np.array(self._data[start:end]).view(np.int16)
            found.append(torch.from_numpy(rows).view(torch.bfloat16))
        return found

    def _recover(self, samples: Sequence[Sample]) -> int:
        """How many samples are in the cache; cuts off what was not finished."""
        index, states = self._directory / _INDEX, self._directory / _STATES
        if not index.is_file():
            states.unlink(missing_ok=True)
            return 0
        try:
            content = read_json_object(index, TrainingError)
            done, key, digest = int(content["samples"]), content["key"], content["content"]
        except (TrainingError, ValueError, KeyError, TypeError):
            raise TrainingError(f"{index} is damaged; remove {self._directory}") from None
        if key != self._key or done > len(samples) or digest != content_hash(samples[:done]):
            raise TrainingError(
                f"{self._directory} holds hidden states of another target or other data; remove it, or name "
                "another directory (training.directory)"
            )
        size = _total_tokens(samples[:done]) * self._row_bytes
        if not states.is_file() or states.stat().st_size < size:
            raise TrainingError(f"{states} is shorter than {index.name} says; remove {self._directory}")
        with states.open("rb+") as file:
            file.truncate(size)
        return done

    @property
    def _row_bytes(self) -> int:
        return 2 * (len(self._layers) + 1) * self._width

    def _write_index(self, samples: Sequence[Sample]) -> None:
        content = {"key": self._key, "samples": len(samples), "content": content_hash(samples)}
        write_json(self._directory / _INDEX, content, indent=None)

    def open(self, samples: Sequence[Sample]) -> None:
        """Make the states of samples that `extend` has computed available to `states`."""
        shape = (_total_tokens(samples), len(self._layers) + 1, self._width)
        self._data = np.memmap(self._directory / _STATES, np.uint16, "r", shape=shape)
        end = 0
        for sample in samples:
            start, end = end, end + len(sample.tokens)
            self._offsets[sample.id] = (start, end)


def collate(samples: Sequence[Sample], source: FeatureSource, *, everything: bool) -> Batch:
    """A batch of samples; `everything` learns all tokens, not only those that the target wrote."""
    tokens = _padded([sample.tokens for sample in samples])
    learned = torch.zeros(tokens.shape, dtype=torch.bool)
    found = source.states(samples)
    states = torch.zeros(*tokens.shape, *found[0].shape[1:], dtype=torch.bfloat16, device=found[0].device)
    for row, (sample, values) in enumerate(zip(samples, found, strict=True)):
        states[row, : len(values)] = values
        for start, end in [(1, len(sample.tokens))] if everything else sample.written:
            learned[row, start:end] = True
    return Batch(tokens, learned, states[:, :, :-1], states[:, :, -1])


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row)
    return padded


def _total_tokens(samples: Sequence[Sample]) -> int:
    return sum(len(sample.tokens) for sample in samples)


def _batches(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Neighbours whose padded size stays within a bound."""
    part: list[Sample] = []
    longest = 0
    for sample in samples:
        longest = max(longest, len(sample.tokens))
        if part and longest * (len(part) + 1) > _BATCH_TOKENS:
            yield part
            part, longest = [], len(sample.tokens)
        part.append(sample)
    if part:
        yield part
