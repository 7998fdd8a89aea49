"""Looks at no more of a prompt than could fit: whoever sends a novel, or nothing but noise, costs others no time."""

from pathlib import Path
from typing import Any

from engine.errors import RequestError
from engine.serving.text import TextCodec

_CUT_WORD = 256
"""Tokens that a part of a text may have more than the whole, at its end: pieces of a token, or of an unknown word."""


class BoundedCodec(TextCodec):
    """A tokenizer for prompts of a most number of tokens.

    Tokenising takes seconds a megabyte, and a hundred times the text's memory. So a text that is too long by its size
    is refused unseen, and of any other a growing part is tokenised until that alone is too much. The work is at most
    three times that of a prompt that fits.
    """

    def __init__(self, directory: Path, *, most_tokens: int, **options: Any) -> None:
        """`most_tokens`: of a prompt; 0: not known, and nothing is refused. The rest as of `TextCodec`."""
        super().__init__(directory, **options)
        self._most = most_tokens
        self._longest = max((len(piece) for piece in self._tokenizer.get_vocab()), default=1)

    def encode(self, text: str) -> list[int]:
        """As `TextCodec.encode`.

        Raises:
            RequestError: the prompt has more tokens than fit.
        """
        if self._most:
            self._refuse_long(text)
        return super().encode(text)

    def _refuse_long(self, text: str) -> None:
        if len(text) > self._most * self._longest:
            raise RequestError(
                f"the prompt has {len(text)} characters, which are more than the limit of {self._most} tokens for "
                f"prompt and output (engine.max_sequence_length) of {self._longest} characters at most"
            )
        part = 2 * self._most
        while part < len(text):
            if len(super().encode(text[:part])) > self._most + self._longest + _CUT_WORD:
                raise RequestError(
                    f"the first {part} of the prompt's {len(text)} characters are more than the limit of {self._most} "
                    "tokens for prompt and output (engine.max_sequence_length)"
                )
            part *= 2
