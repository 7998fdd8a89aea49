"""What an engine's program and the bench say to each other: one JSON document a line.

The program is started with its settings as the only argument. It answers with one line of versions when the model is
loaded, and with a list of answers to every list of prompts that comes in on standard input: those are asked at once. It
runs in the engine's own environment, so this module needs the standard library alone.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Times begin when the prompts that are asked at once are handed in.

    Attributes:
        tokens: emitted token ids, without the end token.
        token_seconds: when each of them was there.
        seconds: when the answer had ended.
        first_token_seconds: when its first token was there, or it had ended without any.
        steps: target steps that emitted tokens, the one that ended the prompt included; None if the engine does not
            tell.
        drafted, accepted: drafts that reached each depth, and those that were accepted so deep; None if the engine
            does not tell. Whether the draft of the last step is among them is the engine's affair.
        draft_tokens: drafted while all answers were being decoded, so after the last of the first tokens.
        draft_seconds: what drafting took meanwhile; where several are asked at once, its part by `draft_tokens`. Both
            None if the engine does not tell.
    """

    tokens: list[int]
    token_seconds: list[float]
    seconds: float
    first_token_seconds: float
    steps: int | None
    drafted: Sequence[int] | None = None
    accepted: Sequence[int] | None = None
    draft_tokens: int | None = None
    draft_seconds: float | None = None


Generate = Callable[[list[list[int]], int, int], list[Answer]]
"""Tokens of prompts that are asked at once, the most tokens to emit for each, and a seed, to their answers.

The seed is the first prompt's; each other one's is one more than that before it. Greedy answers need none.
"""


def serve(load: Callable[[Mapping[str, Any]], tuple[Mapping[str, str], Generate]]) -> None:
    """Load the engine with the settings from the command line, then answer until standard input ends.

    Args:
        load: from settings to versions and the function that answers.
    """
    # Engines print to standard output as they like; the lines go to a descriptor of their own.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    versions, generate = load(json.loads(sys.argv[1]))
    print(json.dumps(dict(versions)), file=lines, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answers = generate(request["prompts"], request["max_tokens"], request["seed"])
        print(json.dumps([asdict(answer) for answer in answers]), file=lines, flush=True)


class Emission:
    """The tokens of an answer as they come.

    Args:
        started: when the prompts were handed in, by `time.perf_counter`.

    Attributes:
        tokens: that have come.
        steps: that have brought some.
    """

    def __init__(self, started: float) -> None:
        self.tokens: list[int] = []
        self.steps = 0
        self._started = started
        self._token_seconds: list[float] = []
        self._seconds: list[float] = []

    @property
    def begun(self) -> bool:
        """Whether the first token has come, or the end."""
        return bool(self._seconds)

    def add(self, tokens: Sequence[int]) -> None:
        """These have come now; none: the answer has ended."""
        now = time.perf_counter() - self._started
        self._seconds.append(now)
        self._token_seconds += [now] * len(tokens)
        self.tokens += tokens
        self.steps += bool(tokens)

    def answer(self, end_ids: Sequence[int], steps: int | None = None) -> Answer:
        """All of it, up to the first end token; in `steps` steps, if the engine knows better."""
        tokens = without_end(self.tokens, end_ids)
        return Answer(
            tokens,
            self._token_seconds[: len(tokens)],
            seconds=self._seconds[-1],
            first_token_seconds=self._seconds[0],
            steps=self.steps if steps is None else steps,
        )


def by_depth(lengths: Sequence[int]) -> list[int]:
    """How many of the lengths reach each depth, from 1 to the longest."""
    return [sum(length >= depth for length in lengths) for depth in range(1, max(lengths, default=0) + 1)]


def without_end(tokens: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """Tokens up to the first end token: some engines hand it out, some do not."""
    found = next((position for position, token in enumerate(tokens) if token in end_ids), len(tokens))
    return list(tokens[:found])
