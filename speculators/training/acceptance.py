"""Acceptance length of greedy speculation, from hits on text that the target wrote greedily.

A chain of D drafted tokens is accepted up to its first miss. So from the hits at every position and depth the whole
course of a request follows without running it: where each step begins, how much it accepts, where the next one begins.
Steps and tokens are counted as the engine counts them: the step that ends the prompt emits one token, the last step
only what is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class Acceptance:
    """Counts over responses.

    Attributes:
        depth: drafted tokens of a step, D.
        max_tokens: tokens of a response that are looked at.
        tokens, steps: emitted tokens and target steps.
        drafted, accepted: of D positions, steps that drafted there, and those in which the token was accepted.
    """

    depth: int
    max_tokens: int = 128
    tokens: int = 0
    steps: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.drafted = self.drafted or [0] * self.depth
        self.accepted = self.accepted or [0] * self.depth

    @property
    def length(self) -> float | None:
        """Tokens per step; None before anything was counted."""
        return self.tokens / self.steps if self.steps else None

    @property
    def by_position(self) -> list[float | None]:
        """Share of the drafts at each position that were accepted; None where none reached so far."""
        return [done / all_ if all_ else None for done, all_ in zip(self.accepted, self.drafted, strict=True)]

    def add(self, hits: torch.Tensor, start: int, end: int) -> None:
        """Count one response; one of no tokens takes no step.

        Args:
            hits: bool ``[D, T]`` of the sequence: was the token after row t drafted right at this depth?
            start, end: where the response stands in the sequence.
        """
        end = min(end, start + self.max_tokens)
        if end == start:
            return
        lengths = _accepted_lengths(hits)
        last = start  # newest token that was emitted
        self.tokens += end - start
        self.steps += 1
        while last < end - 1:
            # A step emits one token more than it accepts, so the last token is never drafted.
            possible = min(self.depth, end - 1 - last - 1)
            found = min(int(lengths[last - 1]), possible)
            for position in range(possible):
                self.drafted[position] += 1
                self.accepted[position] += position < found
            last += found + 1
            self.steps += 1

    def merge(self, other: Acceptance) -> None:
        """Add the counts of another part."""
        self.tokens += other.tokens
        self.steps += other.steps
        for position in range(self.depth):
            self.drafted[position] += other.drafted[position]
            self.accepted[position] += other.accepted[position]


def _accepted_lengths(hits: torch.Tensor) -> list[int]:
    """For a chain with hidden states up to t: hits ``[d, t + d]`` from depth 1 on, until the first miss."""
    depth, length = hits.shape
    chains = torch.zeros(depth, length, dtype=torch.int64)
    for level in range(1, depth + 1):
        chains[level - 1, : length - level] = hits[level - 1, level:].long()
    counts: list[int] = chains.cumprod(0).sum(0).tolist()
    return counts


def mean_chain(hits: torch.Tensor, learned: torch.Tensor) -> float:
    """Mean accepted length over all positions of a batch, wherever a step would begin.

    Args:
        hits: bool ``[D, B, T]``.
        learned: bool ``[B, T]``: tokens that count.
    """
    depth, _, length = hits.shape
    chains = torch.zeros_like(hits)
    for level in range(1, depth + 1):
        chains[level - 1, :, : length - level] = hits[level - 1, :, level:]
    accepted = chains.cumprod(0).sum(0)
    starts = torch.zeros_like(learned)
    starts[:, :-2] = learned[:, 2:]
    return float(accepted[starts].float().mean()) if starts.any() else 0.0
