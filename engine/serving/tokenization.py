"""The `preprocessing` and `postprocessing` models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.serving.backend import (
    directory,
    finish_calls,
    parameters,
    refusal,
    response,
    stop_generation,
    tensors,
)
from engine.serving.bounded_text import BoundedCodec
from engine.serving.contract import Tensors, is_blank
from engine.serving.engine_limits import EngineLimits
from engine.serving.engine_rules import EngineRules
from engine.serving.life import Life
from engine.serving.mail import send
from engine.serving.request_names import refuse_unknown
from engine.serving.text import TextCodec, decode_prompt, decode_words
from engine.serving.wiring import TO_GENERATION, TO_PREPROCESSING

_NO_TOKEN = -1
_TEXT_INPUTS = (*TO_PREPROCESSING, *TO_GENERATION)
# Inputs that no engine here could honour, and those that TensorRT-LLM's can but the embedded one cannot.
_REFUSED = (*("DECODER_QUERY", "PROMPT_TABLE_EXTRA_ID", "IMAGE_BYTES", "IMAGE_URL", "IMAGES", "VIDEO_BYTES"),)
_REFUSED_BY_EMBEDDED = ("BAD_WORDS_DICT", "EMBEDDING_BIAS_WORDS", "EMBEDDING_BIAS_WEIGHTS")


class PreprocessingModel:
    """Text to token ids; word lists to the contract's offset layout."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load the tokenizer, and in front of TensorRT-LLM (parameter `engine`) what its engine has to be told."""
        settings = parameters(arguments)
        tokenizer = directory(arguments, "tokenizer_dir")
        begins = settings.get("add_special_tokens", "true").lower() in ("true", "1")
        most = int(settings.get("max_sequence_length", "0"))
        self._rules = (
            EngineRules.read(tokenizer, directory(arguments, "gpt_model_path"))
            if settings.get("engine") == "tensorrt_llm"
            else None
        )
        if self._rules:
            most = EngineLimits.read(directory(arguments, "gpt_model_path")).max_sequence_length
        self._codec = BoundedCodec(tokenizer, most_tokens=most, add_special_tokens=begins)
        self._life = Life(arguments)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """End the signs of life."""
        self._life.end()

    def _answer(self, request: Any) -> Any:
        try:
            # A step of an ensemble gets the parameters of the whole; in front of it nobody could look at them.
            refuse_unknown(request.parameters(), _TEXT_INPUTS)
            outputs = preprocess(self._codec, tensors(request), self._rules)
            return response(outputs, request.requested_output_names())
        except Exception as error:  # Triton would send the client our source code's lines
            return refusal(error)


class PostprocessingModel:
    """Token ids to text; knows the request's earlier tokens, so chunks join without seams.

    It is also the model of an ensemble that Triton tells when the client of a stream has gone; it passes that
    on to the generation (see `engine.serving.generation`).
    """

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load the tokenizer."""
        settings = parameters(arguments)
        self._codec = TextCodec(
            directory(arguments, "tokenizer_dir"),
            skip_special_tokens=settings["skip_special_tokens"] == "true",
        )
        self._generation = settings["tensorrt_llm_model_name"]
        self._life = Life(arguments)

    def finalize(self) -> None:
        """Leave nothing of the calls behind."""
        finish_calls()
        self._life.end()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            inputs = tensors(request)
            if request.is_cancelled() and "GENERATION_HANDLE" in inputs:
                self._end(inputs["GENERATION_HANDLE"])
            return response({"OUTPUT": postprocess(self._codec, inputs)})
        except Exception as error:  # as above
            return refusal(error)

    def _end(self, handle: NDArray[Any]) -> None:
        if not send(self._generation, str(int(handle.ravel()[0]))):  # it takes no messages
            stop_generation(self._generation, handle)


def preprocess(
    codec: TextCodec, inputs: Tensors, rules: EngineRules | None = None
) -> dict[str, NDArray[Any]]:
    """Outputs of `preprocessing` for a request's inputs.

    Args:
        codec: the tokenizer.
        inputs: the request's.
        rules: of a TensorRT-LLM engine; None in front of the embedded one, which has its own end tokens.

    Raises:
        RequestError: a text is not UTF-8, or an input is not supported.
    """
    _refuse_unsupported(inputs, rules)
    prompts = [codec.encode(decode_prompt(text)) for text in inputs["QUERY"].ravel()]
    width = max(1, *map(len, prompts))
    rows = len(prompts)
    ids = np.array([prompt + [0] * (width - len(prompt)) for prompt in prompts], np.int32).reshape(
        rows, width
    )
    named_end = "END_ID" in inputs and not is_blank(inputs["END_ID"])
    first, *others = rules.end_ids if rules and not named_end else (_NO_TOKEN,)
    end_ids = inputs["END_ID"] if named_end else np.full((rows, 1), first, np.int32)
    return {
        "INPUT_ID": ids,
        "REQUEST_INPUT_LEN": np.array([[len(prompt)] for prompt in prompts], np.int32),
        "DECODER_INPUT_ID": np.zeros((rows, 1), np.int32),
        "REQUEST_DECODER_INPUT_LEN": np.ones((rows, 1), np.int32),
        "STOP_WORDS_IDS": _word_lists(codec, inputs.get("STOP_WORDS_DICT"), rows, "stop_words", others),
        "BAD_WORDS_IDS": _word_lists(codec, inputs.get("BAD_WORDS_DICT"), rows, "bad_words"),
        "REQUEST_OUTPUT_LEN": inputs["REQUEST_OUTPUT_LEN"],
        "OUT_END_ID": end_ids,
        "OUT_PAD_ID": inputs.get("PAD_ID", end_ids),
        **_bias(codec, inputs, rows, rules),
    }


def _refuse_unsupported(inputs: Tensors, rules: EngineRules | None) -> None:
    public = {inner: name for name, inner in TO_PREPROCESSING.items()}
    who = "the kit's preprocessing" if rules else "the embedded engine"
    for name in _REFUSED if rules else (*_REFUSED, *_REFUSED_BY_EMBEDDED):
        if name in inputs and not is_blank(inputs[name]):
            raise RequestError(f"{public.get(name, name)} is not supported by {who}; leave it out")


def _bias(codec: TextCodec, inputs: Tensors, rows: int, rules: EngineRules | None) -> dict[str, NDArray[Any]]:
    """EMBEDDING_BIAS, which is wide and therefore made only for requests that ask for it."""
    given = inputs.get("EMBEDDING_BIAS_WORDS")
    if rules is None or given is None or is_blank(given):
        return {}
    words = [decode_words(given, row, "embedding_bias_words") for row in range(rows)]
    weights = np.atleast_2d(inputs.get("EMBEDDING_BIAS_WEIGHTS", np.zeros((1, 0)))).tolist()
    alike = [(words[row], weights[min(row, len(weights) - 1)]) for row in range(rows)]
    return {"EMBEDDING_BIAS": np.stack([rules.bias(codec, *pair) for pair in alike])}


def postprocess(codec: TextCodec, inputs: Tensors) -> NDArray[np.object_]:
    """Text of each row, one-dimensional as NVIDIA's clients expect it.

    TOKENS_BATCH is [rows, beams, tokens] and SEQUENCE_LENGTH [rows, beams], of which the first beam is decoded;
    PREVIOUS_TOKENS, IS_FINAL and TEXT_CUT come from the kit's own models; TEXT_CUT characters at the end of the text
    are those of a stop word.

    Raises:
        RequestError: there is no beam, or a token is negative.
    """
    batch, lengths = inputs["TOKENS_BATCH"], inputs["SEQUENCE_LENGTH"]
    earlier = inputs.get("PREVIOUS_TOKENS", np.zeros((len(batch), 0), np.int32))
    if not (batch.shape[1] and lengths.shape[1]):
        raise RequestError(
            f"TOKENS_BATCH has shape {list(batch.shape)} and SEQUENCE_LENGTH {list(lengths.shape)}; "
            "both must hold a beam"
        )
    if min(batch.min(initial=0), earlier.min(initial=0)) < 0:
        raise RequestError("TOKENS_BATCH or PREVIOUS_TOKENS holds a negative token; token ids start at 0")
    texts = []
    for row, beams in enumerate(batch):
        new = beams[0, : max(0, int(lengths[row, 0]))].tolist()
        previous = earlier[row].tolist()
        final = bool(np.ravel(inputs["IS_FINAL"])[row]) if "IS_FINAL" in inputs else True
        cut = int(np.ravel(inputs["TEXT_CUT"])[row]) if "TEXT_CUT" in inputs else 0
        text = codec.decode_next(previous, new, final=final)
        texts.append(text[: len(text) - max(0, cut)].encode("utf-8"))
    return np.array(texts, dtype=np.object_)


def _word_lists(
    codec: TextCodec, words: NDArray[Any] | None, rows: int, name: str, more: Sequence[int] = ()
) -> NDArray[np.int32]:
    """[rows, 2, n]: the words of each row (all rows alike if there is one list), and more tokens for all."""
    encoded = [codec.word_lists(decode_words(words, row, name), more) for row in range(rows)]
    width = max(item.shape[1] for item in encoded)
    filled = np.full((rows, 2, width), _NO_TOKEN, np.int32)
    filled[:, 0] = 0
    for row, item in enumerate(encoded):
        filled[row, :, : item.shape[1]] = item
    return filled
