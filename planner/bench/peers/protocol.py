"""What an engine's program and the bench say to each other: one JSON document a line.

The program is started with its settings as the only argument. It answers with one line of versions when the model is
loaded, and with one `Answer` to every request that comes in on standard input. It runs in the engine's own environment,
so this module needs the standard library alone.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """One greedy answer.

    Attributes:
        tokens: emitted token ids, without the end token.
        seconds: from the request to the last token, measured around the engine's own call.
        first_token_seconds: from the request to the first token: the engine's own figure where it has one.
        steps: target steps that emitted tokens, the one that ended the prompt included; None if the engine does not
            tell.
        drafted, accepted: drafts that reached each depth, and those that were accepted so deep; None if the engine
            does not tell. Whether the draft of the last step is among them is the engine's affair.
    """

    tokens: list[int]
    seconds: float
    first_token_seconds: float
    steps: int | None
    drafted: Sequence[int] | None = None
    accepted: Sequence[int] | None = None


Generate = Callable[[list[int], int], Answer]
"""Prompt tokens and the most tokens to emit, to the answer."""


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
        answer = generate(request["prompt"], request["max_tokens"])
        print(json.dumps(asdict(answer)), file=lines, flush=True)


def by_depth(lengths: Sequence[int]) -> list[int]:
    """How many of the lengths reach each depth, from 1 to the longest."""
    return [sum(length >= depth for length in lengths) for depth in range(1, max(lengths, default=0) + 1)]


def without_end(tokens: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """Tokens up to the first end token: some engines hand it out, some do not."""
    found = next((position for position, token in enumerate(tokens) if token in end_ids), len(tokens))
    return list(tokens[:found])
