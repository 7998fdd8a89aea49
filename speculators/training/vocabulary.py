"""The draft vocabulary: the tokens that the target writes most.

The output matrix over the whole vocabulary is most of a small drafter's cost and size. A few thousand tokens make up
nearly all of what a target writes; the others are not drafted, which costs a rejection where one comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import torch

from speculators.data.samples import Sample


def draft_vocabulary(samples: Sequence[Sample], size: int, vocab_size: int) -> torch.Tensor:
    """Target ids of the `size` tokens written most, ascending; ties and tokens never written by lowest id."""
    counts = token_counts(samples, vocab_size)
    order = torch.sort(counts, descending=True, stable=True).indices
    return order[:size].sort().values


def rarest_token(samples: Sequence[Sample], vocab_size: int) -> int:
    """The token that is least often in the samples, in prompts and answers; of those, the one with the highest id."""
    counts = _counted(chain.from_iterable(sample.tokens for sample in samples), vocab_size)
    return int((counts == counts.min()).nonzero()[-1])


def token_counts(samples: Sequence[Sample], vocab_size: int) -> torch.Tensor:
    """How often the target wrote each token, int64 ``[V]``."""
    written = chain.from_iterable(
        sample.tokens[start:end] for sample in samples for start, end in sample.written
    )
    return _counted(written, vocab_size)


def coverage(samples: Sequence[Sample], kept: torch.Tensor, vocab_size: int) -> float:
    """Share of the written tokens that are in the draft vocabulary."""
    counts = token_counts(samples, vocab_size)
    return float(counts[kept].sum() / counts.sum().clamp(min=1))


def _counted(tokens: Iterable[int], vocab_size: int) -> torch.Tensor:
    return torch.bincount(torch.tensor(list(tokens), dtype=torch.int64), minlength=vocab_size)
