"""Conversations that the target writes by itself, for where there is no data.

An instruct model that reads an empty chat template, up to where the user speaks, writes what users say (Magpie, arXiv
2406.08464). Here it also gets the user's first words (`speculators.data.openings`), and for summaries and questions
about passages it first writes the text in an answer of its own. What it is asked in the end is answered as it is
served: default system prompt, and most answers greedy.

Every sample follows from the seed and its id alone, so a run that is stopped and started again writes the same data.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass

from speculators.data.openings import OPENINGS
from speculators.data.overlap import HeldOut
from speculators.data.samples import Sample
from speculators.data.writing import ChatFormat, Messages, Task, Writing, Written

Step = Generator[Writing, Written, "str | None"]

_FEWEST_CHARACTERS = 8
_PASSAGES = ("summarization", "rag")
_PASSAGE_SHARES = (14.0, 11.0)
_TRANSLATION_SHARE = 14.0
_PASSAGE_TOKENS = (120, 420)
_PASSAGE_TEMPERATURE = 0.8
_FOLLOW_UP = 0.12
# Tokens of a text that the target continues: stage 2 of IBM's recipe (fms-fsdp).
_TEXT_PROMPT = 64


@dataclass(frozen=True, slots=True)
class AnswerStyle:
    """How answers are drawn.

    Attributes:
        max_tokens: longest answer.
        greedy: share of samples that are answered greedily; the others at `temperature`.
        temperature, top_k: of the others.
    """

    max_tokens: int = 192
    greedy: float = 0.7
    temperature: float = 0.8
    top_k: int = 50


@dataclass(frozen=True, slots=True)
class Author:
    """Makes writing tasks for one target.

    Attributes:
        chat: the target's chat format.
        held_out: prompts that must not come out.
        style: how answers are drawn.
        seed: seed of everything.
        max_prompt_tokens: longest user turn that it writes.
        max_length: most tokens that the target takes in and writes.
    """

    chat: ChatFormat
    held_out: HeldOut
    style: AnswerStyle = AnswerStyle()
    seed: int = 0
    max_prompt_tokens: int = 160
    max_length: int = 2048

    def self_written(self, number: int) -> Task:
        """A task that writes prompt and answers of sample `number`."""
        dice = random.Random(f"{self.seed}:{number}")
        names = (*OPENINGS.kinds, *_PASSAGES, "translation")
        shares = (*(kind.share for kind in OPENINGS.kinds.values()), *_PASSAGE_SHARES, _TRANSLATION_SHARE)
        category = dice.choices(names, shares)[0]
        first: Callable[[], Step]
        if category in OPENINGS.kinds:
            kind = OPENINGS.kinds[category]
            first = lambda: self._user_turn(dice, [], kind.system, dice.choice(kind.openings))  # noqa: E731
        elif category == "translation":
            first = lambda: _translation(dice)  # noqa: E731
        else:
            first = lambda: self._about_passage(dice, category)  # noqa: E731
        return self._conversation(number, category, dice, first)

    def answered(self, number: int, category: str, turns: list[str]) -> Task:
        """A task that answers the given user turns, one after another."""
        dice = random.Random(f"{self.seed}:{number}")
        first, *others = turns
        return self._conversation(number, category, dice, lambda: _given(first), others)

    def continued(self, number: int, text: str) -> Task:
        """A task that continues the first tokens of a text."""
        dice = random.Random(f"{self.seed}:{number}")
        if refused := self._refusal(text):
            return Sample(number, "text", refused=refused)
        prompt = tuple(self.chat.encode(text))[:_TEXT_PROMPT]
        greedy = dice.random() < self.style.greedy
        written = yield from self._answer(prompt, dice, greedy)
        if written is None:
            return Sample(number, "text", refused="too long")
        tokens = prompt + written.tokens + (self.chat.end_id,) * written.ended
        messages = [{"role": "text", "content": self.chat.decode(tokens)}]
        return Sample(number, "text", messages, tokens, [(len(prompt), len(tokens))], greedy)

    def _conversation(
        self,
        number: int,
        category: str,
        dice: random.Random,
        first: Callable[[], Step],
        others: list[str] | None = None,
    ) -> Task:
        messages: list[dict[str, str]] = []
        tokens: tuple[int, ...] = ()
        ranges: list[tuple[int, int]] = []
        greedy = dice.random() < self.style.greedy
        turn: str | None = yield from first()
        while turn is not None:
            if refused := self._refusal(turn):
                return Sample(number, category, refused=refused)
            messages.append({"role": "user", "content": turn})
            prompt = self.chat.prompt(messages)
            written = yield from self._answer(prompt, dice, greedy)
            if written is None:
                return Sample(number, category, refused="too long")
            answer = (*written.tokens, self.chat.end_id) if written.ended else written.tokens
            if prompt[: len(tokens)] != tokens:  # the template cut history, or the text is encoded otherwise
                ranges = []
            tokens = prompt + answer
            ranges.append((len(prompt), len(tokens)))
            messages.append({"role": "assistant", "content": self.chat.decode(written.tokens)})
            turn = None
            if others:
                turn = others.pop(0)
            elif others is None and written.ended and dice.random() < _FOLLOW_UP:
                turn = yield from self._user_turn(dice, messages, "", "")
                turn = turn if turn and not self._refusal(turn) else None
        if not tokens:
            return Sample(number, category, refused="no prompt came to an end")
        return Sample(number, category, messages, tokens, ranges, greedy)

    def _refusal(self, turn: str) -> str | None:
        if len(turn) < _FEWEST_CHARACTERS:
            return "too short"
        return "overlap" if self.held_out.overlap(turn) else None

    def _ask(
        self, dice: random.Random, prompt: tuple[int, ...], max_tokens: int, temperature: float
    ) -> Generator[Writing, Written, Written | None]:
        """What the target writes after a prompt; None if the prompt leaves no room."""
        room = self.max_length - len(prompt)
        seed, top_k = dice.getrandbits(32), self.style.top_k if temperature else 0
        return (yield Writing(prompt, min(max_tokens, room), temperature, top_k, seed)) if room > 0 else None

    def _answer(
        self, prompt: tuple[int, ...], dice: random.Random, greedy: bool
    ) -> Generator[Writing, Written, Written | None]:
        temperature = 0.0 if greedy else self.style.temperature
        return (yield from self._ask(dice, prompt, self.style.max_tokens, temperature))

    def _user_turn(self, dice: random.Random, messages: Messages, system: str, opening: str) -> Step:
        prompt = self.chat.user_turn(messages, system, opening)
        temperature = dice.choice((0.7, 0.9, 1.0))
        written = yield from self._ask(dice, prompt, self.max_prompt_tokens, temperature)
        if written is None or not written.ended:
            return None
        return (opening + self.chat.decode(written.tokens)).strip()

    def _about_passage(self, dice: random.Random, category: str) -> Step:
        """A summary of, or a question about, a text that the target wrote."""
        place = dice.choice(OPENINGS.places)
        if category == "summarization":
            request = f"Write a long news article about {dice.choice(OPENINGS.topics)} {place}."
        else:
            request = f"Write an encyclopedia article about {dice.choice(OPENINGS.subjects)} {place}."
        prompt = self.chat.prompt([{"role": "user", "content": request}])
        written = yield from self._ask(dice, prompt, dice.randrange(*_PASSAGE_TOKENS), _PASSAGE_TEMPERATURE)
        if written is None:
            return None
        passage = self.chat.decode(written.tokens).strip()
        if category == "summarization":
            return f"Summarize: {passage}"
        opening = dice.choice(OPENINGS.question_words)
        asked = yield from self._user_turn(dice, [], f"The user asks about this text: {passage}", opening)
        return f"{passage}\n\n{asked}" if asked else None


def _translation(dice: random.Random) -> Step:
    *parts, tails = OPENINGS.german
    sentence = " ".join(dice.choice(part) for part in parts) + dice.choice(tails)
    return _given(f"Translate German to English: {sentence}.")


def _given(text: str) -> Step:
    """A turn that need not be written."""
    return text
    yield  # makes it a generator
