"""Stop words are text: where they are met in the text of an output, whatever tokens it is made of.

A tokenizer joins the parts of a stop word with their neighbours (`"\\n\\n"` with what comes next, `"User:"` with the
space before it), so the tokens of the word by itself may never come. Here the text of each token is fed, character by
character, to an automaton that knows all words (`engine.automaton`): many words cost no more than one.

The first word that is complete ends the output, and what it begins with is not part of it. So text that may still
become one is held back, and the tokens that it is made of: a token is given out once all its text is certainly text.
Where a word begins in the middle of a token, that token is the last one, and `StopPoint.cut` says how many characters
of it do not belong to the output any more. A special token that is left out of the text is a symbol of its own, which
a stop word has where it spells its name.

Example::

    watch = StopWords(["\\n\\n", "User:"], codec).watch()
    for token in tokens:
        if watch.add(token):
            break
    else:
        watch.close()
    kept = watch.end or StopPoint(len(tokens), 0)
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.automaton import Automaton
from engine.errors import RequestError

MOST_WORDS = 1024
MOST_LENGTH = 8192
"""Of all words of a list together: characters, or tokens."""


def check_words(words: Sequence[Sequence[Hashable]], name: str, what: str = "characters") -> None:
    """Refuse more words than a request may have, before anything is made of them.

    Raises:
        RequestError: names the list, the limit and what there is.
    """
    if len(words) > MOST_WORDS:
        raise RequestError(f"{name} holds {len(words)} words; at most {MOST_WORDS} are taken")
    if (length := sum(map(len, words))) > MOST_LENGTH:
        raise RequestError(f"{name} holds {length} {what} in all; at most {MOST_LENGTH} are taken")


@dataclass(frozen=True, slots=True)
class Piece:
    """What a token adds to a text.

    Attributes:
        symbols: characters that no later token can change; or the name of a special token that is left out of the text.
        shown: whether they are part of the text.
        whole: whether the text has all of the tokens so far, and no bytes wait for the rest of a character.
    """

    symbols: Sequence[str]
    shown: bool
    whole: bool


class Transcript(Protocol):
    """The text of one output, token by token."""

    def add(self, token: int) -> Piece:
        """Take in one more token."""

    def text_of(self, given: Sequence[int], more: Sequence[int]) -> str:
        """The text that `more` tokens add to that of the tokens `given` before them, if none come after."""


class Text(Protocol):
    """How tokens become text."""

    def transcript(self) -> Transcript:
        """Of a new output."""

    def spellings(self, word: str) -> list[Sequence[str]]:
        """The symbols that a word may be met as."""


@dataclass(frozen=True, slots=True)
class StopPoint:
    """Where a stop word ends an output: after `tokens` tokens, less `cut` characters at the end of their text."""

    tokens: int
    cut: int
    word: str = ""


@dataclass(frozen=True, slots=True)
class _Held:
    """A token that may belong to a stop word: characters up to its end, and whether a text may end there."""

    token: int
    end: int
    whole: bool


class StopWords:
    """The stop words of a request, ready to be looked for; empty ones are left out.

    Raises:
        RequestError: there are too many.
    """

    def __init__(self, words: Sequence[str], text: Text) -> None:
        check_words(words, "stop_words")
        self._automaton = Automaton(form for word in words if word for form in text.spellings(word))
        self._text = text

    def watch(self, earlier: Sequence[int] = ()) -> "StopWatch":
        """Watch an output, of which somebody else has given out the tokens `earlier` already."""
        return StopWatch(self._automaton, self._text.transcript(), earlier)


class StopWatch:
    """Watches one output.

    Args:
        automaton: of the stop words.
        transcript: of the output.
        earlier: tokens that have been given out by somebody else before; a word may begin in them.

    Attributes:
        safe: how many of the tokens that were added are certainly text.
        end: where a stop word has ended the output.
    """

    def __init__(
        self, automaton: Automaton[str], transcript: Transcript, earlier: Sequence[int] = ()
    ) -> None:
        self.safe = 0
        self.end: StopPoint | None = None
        self._automaton, self._transcript = automaton, transcript
        self._state = 0
        self._length = 0  # characters so far
        self._given: list[int] = []  # tokens that have been let go
        self._held: deque[_Held] = deque()
        self._read: list[tuple[str, bool]] = []  # symbols of the held tokens, and whether they are shown
        for token in earlier:
            self._feed(transcript.add(token))
        self._given.extend(earlier)
        self._read.clear()
        self.end = None

    def add(self, token: int) -> bool:
        """Take in one more token; whether a stop word is complete."""
        piece = self._transcript.add(token)
        found = self._feed(piece)
        self._held.append(_Held(token, self._length, piece.whole))
        if found:
            self._stop(found)
        else:
            self._let_go()
        return self.end is not None

    def close(self) -> bool:
        """No token follows, so bytes that waited for the rest of a character are text; whether a word ends in them."""
        if self.end is None and self._held:
            held = [item.token for item in self._held]
            whole = self._transcript.text_of(self._given, held)
            rest = whole[len(_shown(self._read)) :]
            if found := self._feed(Piece(rest, shown=True, whole=True)):
                self._stop(found)
        return self.end is not None

    def _feed(self, piece: Piece) -> int:
        """Feed the automaton; the length of the word that is complete, or 0. What comes after it is not read."""
        for symbol in piece.symbols:
            if not piece.shown and symbol not in self._automaton.symbols:
                continue  # no word has it, and a reader of the text does not see it
            self._state = self._automaton.step(self._state, symbol)
            self._length += 1
            self._read.append((symbol, piece.shown))
            if found := self._automaton.found[self._state]:
                return found
        return 0

    def _stop(self, found: int) -> None:
        """The output ends before the last `found` characters: at the first token with which its text is whole."""
        begins = max(0, len(self._read) - found)
        text, word = _shown(self._read[:begins]), "".join(symbol for symbol, _ in self._read[begins:])
        held = [item.token for item in self._held]
        for count in range(len(held) + 1):
            with_these = self._transcript.text_of(self._given, held[:count])
            if with_these.startswith(text):
                break
        self.end = StopPoint(self.safe + count, max(0, len(with_these) - len(text)), word)

    def _let_go(self) -> None:
        """Give out the tokens before what may become a stop word, up to one after which the text is whole."""
        certain = self._length - self._automaton.held[self._state]
        count = 0
        for place, item in enumerate(self._held, start=1):
            if item.end > certain:
                break
            if item.whole:
                count = place
        if not count:
            return
        self.safe += count
        for _ in range(count):
            last = self._held.popleft()
            self._given.append(last.token)
        del self._read[: len(self._read) - (self._length - last.end)]


def _shown(symbols: Sequence[tuple[str, bool]]) -> str:
    return "".join(symbol for symbol, shown in symbols if shown)
