"""How training data asks the target to write: generators that yield requests and are sent the answers.

A task is a Python generator. It yields a `Writing`, is sent what the target wrote, and returns its sample in the
end; many tasks run at once on one engine (`engine.writing`), each at its own pace.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from speculators.data.errors import DataError
from speculators.data.samples import Sample

Messages = Sequence[Mapping[str, str]]

_ANSWER = "drafthouse"


@dataclass(frozen=True, slots=True)
class Writing:
    """What the target is to continue, and how: temperature 0 is greedy, `top_k` 0 keeps all tokens."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """What it wrote, without the end token; `ended` tells whether one came."""

    tokens: tuple[int, ...]
    ended: bool


Task = Generator[Writing, Written, Sample]


class Writer(Protocol):
    """Runs many tasks at once."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Sample]:
        """The samples, in the order in which they are finished."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How the target sees conversations.

    Attributes:
        render: the prompt of messages, ending where the assistant's turn begins.
        encode: token ids of a prompt.
        decode: text of token ids.
        end_id: the token that ends a turn.
    """

    render: Callable[[Messages], str]
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    end_id: int

    def prompt(self, messages: Messages) -> tuple[int, ...]:
        """Token ids of messages, the last one the user's."""
        return tuple(self.encode(self.render(messages)))

    def user_turn(self, messages: Messages, system: str, opening: str) -> tuple[int, ...]:
        """Token ids up to where the user's next turn has just begun with `opening`."""
        mark = "\x00"
        first = [{"role": "system", "content": system}] if system else []
        text = self.render([*first, *messages, {"role": "user", "content": mark}])
        return tuple(self.encode(text[: text.index(mark)] + opening))


def turn_end(
    render: Callable[[Messages], str], encode: Callable[[str], Sequence[int]], end_ids: Sequence[int]
) -> int:
    """Of a model's end tokens the one that its chat template puts after an answer; its main one if it puts none.

    Args:
        render: the prompt of messages.
        encode: token ids of a text alone, without what the tokenizer puts around one.
        end_ids: the model's end tokens, the main one first.

    Raises:
        DataError: there are none.
    """
    if not end_ids:
        raise DataError("the target names no end token, so nothing tells where its answers end")
    text = render([{"role": "user", "content": _ANSWER}, {"role": "assistant", "content": _ANSWER}])
    after = encode(text[text.rfind(_ANSWER) + len(_ANSWER) :])
    return next((token for token in after if token in end_ids), end_ids[0])
