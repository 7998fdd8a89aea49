"""Stop words as text on TensorRT-LLM's LLM API, which looks for the tokens of a word and nothing else, and on vLLM.

A generation that has stop words is streamed, so that a word is met when it comes, and is then aborted. What is answered
is made from a view of its results that ends where the word begins.
"""

from typing import Any

from engine.gate import Gate
from engine.serving.llmapi_response import log_probs_of
from engine.serving.text import TextCodec
from engine.stopping import StopWords


class StopView:
    """The results of one generation up to a stop word."""

    def __init__(self, words: StopWords, codec: TextCodec) -> None:
        self._gate = Gate(words.watch())
        self._codec = codec
        self._tokens: list[int] = []
        self._seen = 0
        self._text = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop word has been met."""
        return self._gate.stopped

    def stops(self, result: Any) -> bool:
        """Take in a result; whether a stop word is complete with it."""
        tokens = list(result.outputs[0].token_ids)
        new, self._seen = tokens[self._seen :], max(self._seen, len(tokens))
        return not self.stopped and any(self._gate.add(token) for token in new)

    def view(self, result: Any) -> Any | None:
        """What of the result may be seen: as much of it as cannot become a stop word, or all before one.

        None if that is nothing new.
        """
        output, finished = result.outputs[0], bool(result.finished)
        release = self._gate.release(ended=finished or self.stopped)
        if not release.tokens and not finished:
            return None
        text = self._codec.decode_next(self._tokens, release.tokens, final=finished or self.stopped)
        self._text += text[: len(text) - release.cut]
        self._tokens += release.tokens
        log_probs = log_probs_of(output)[: len(self._tokens)]
        seen = _Seen(
            output,
            text=self._text,
            token_ids=list(self._tokens),
            logprobs=log_probs,
            finish_reason="stop" if self.stopped else output.finish_reason,
            stop_reason=self._gate.stop_word or output.stop_reason,
            cumulative_logprob=sum(log_probs) if log_probs else output.cumulative_logprob,
        )
        return _Seen(result, outputs=[seen], text_cut=release.cut)


class _Seen:
    """A result, or an output of one, of which some attributes are others."""

    def __init__(self, whole: Any, **others: Any) -> None:
        self._whole = whole
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)
