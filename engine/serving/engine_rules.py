"""What `preprocessing` has to say to NVIDIA's C++ backend that the embedded engine knows by itself.

The backend takes one end token and has no default: a request that names none would run to its last token. Models that
end their turns with several tokens (Llama 3's `<|eot_id|>` beside `<|end_of_text|>`) get the others as stop words. It
also takes bad words and a bias on single tokens, as wide as the engine's vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.serving.end_tokens import end_token_ids
from engine.serving.text import TextCodec


@dataclass(frozen=True)
class EngineRules:
    """A target engine's end tokens, the first of them for `end_id`, and the size of its vocabulary."""

    end_ids: tuple[int, ...]
    vocabulary: int

    @classmethod
    def read(cls, tokenizer: Path, engine: Path) -> "EngineRules":
        """Find them beside the tokenizer and in the engine's config.json.

        Raises:
            ValueError: the model names no end token, or the engine no vocabulary.
        """
        end_ids = end_token_ids(
            tokenizer, _json(tokenizer / "config.json"), _json(tokenizer / "generation_config.json")
        )
        if not end_ids:
            raise ValueError(
                f"{tokenizer} names no end token: add eos_token_id to its generation_config.json or config.json"
            )
        vocabulary = _json(engine / "config.json").get("pretrained_config", {}).get("vocab_size")
        if vocabulary is None:
            raise ValueError(f"{engine}/config.json has no pretrained_config.vocab_size; it is no engine")
        return cls(end_ids, int(vocabulary))

    def bias(self, codec: TextCodec, words: Sequence[str], weights: Sequence[float]) -> NDArray[np.float32]:
        """EMBEDDING_BIAS of one row: a weight for the token of each word, 0 for all others.

        Raises:
            RequestError: there are not as many weights as words, or a word is not one token.
        """
        if len(words) != len(weights):
            raise RequestError(f"{len(words)} embedding_bias_words but {len(weights)} embedding_bias_weights")
        bias = np.zeros(self.vocabulary, np.float32)
        for word, weight in zip(words, weights, strict=True):
            tokens = codec.encode_words([word])[0]
            if len(tokens) != 1:
                raise RequestError(f"embedding_bias_words: {word!r} is {len(tokens)} tokens; it must be one")
            bias[tokens[0]] += weight
        return bias


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content
