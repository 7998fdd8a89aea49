"""The `preprocessing` and `postprocessing` models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.request import RequestError
from engine.serving.backend import directory, parameters, refusal, response, stop_generation, tensors
from engine.serving.contract import Tensors, is_blank
from engine.serving.text import TextCodec, decode_prompt
from engine.serving.wiring import TO_PREPROCESSING

_NO_TOKEN = -1
# Inputs that the embedded engine could not honour.
_REFUSED = (
    *("DECODER_QUERY", "BAD_WORDS_DICT", "EMBEDDING_BIAS_WORDS", "EMBEDDING_BIAS_WEIGHTS"),
    *("PROMPT_TABLE_EXTRA_ID", "IMAGE_BYTES", "IMAGE_URL", "IMAGES", "VIDEO_BYTES"),
)


class PreprocessingModel:
    """Text to token ids; word lists to the contract's offset layout."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load the tokenizer."""
        self._codec = TextCodec(directory(arguments, "tokenizer_dir"))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return response(preprocess(self._codec, tensors(request)), request.requested_output_names())
        except RequestError as error:
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

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        return [self._answer(request, tensors(request)) for request in requests]

    def _answer(self, request: Any, inputs: Tensors) -> Any:
        if request.is_cancelled() and "GENERATION_HANDLE" in inputs:
            stop_generation(self._generation, inputs["GENERATION_HANDLE"])
        try:
            return response({"OUTPUT": postprocess(self._codec, inputs)})
        except RequestError as error:
            return refusal(error)


def preprocess(codec: TextCodec, inputs: Tensors) -> dict[str, NDArray[Any]]:
    """Outputs of `preprocessing` for a request's inputs.

    Raises:
        RequestError: a text is not UTF-8, or an input is not supported.
    """
    public = {inner: name for name, inner in TO_PREPROCESSING.items()}
    for name in _REFUSED:
        if name in inputs and not is_blank(inputs[name]):
            raise RequestError(
                f"{public.get(name, name)} is not supported by the embedded engine; leave it out"
            )
    prompts = [codec.encode(decode_prompt(text)) for text in inputs["QUERY"].ravel()]
    width = max(1, *map(len, prompts))
    rows = len(prompts)
    ids = np.array([prompt + [0] * (width - len(prompt)) for prompt in prompts], np.int32).reshape(
        rows, width
    )
    return {
        "INPUT_ID": ids,
        "REQUEST_INPUT_LEN": np.array([[len(prompt)] for prompt in prompts], np.int32),
        "DECODER_INPUT_ID": np.zeros((rows, 1), np.int32),
        "REQUEST_DECODER_INPUT_LEN": np.ones((rows, 1), np.int32),
        "STOP_WORDS_IDS": _word_lists(codec, inputs.get("STOP_WORDS_DICT"), rows),
        "BAD_WORDS_IDS": _word_lists(codec, None, rows),
        "REQUEST_OUTPUT_LEN": inputs["REQUEST_OUTPUT_LEN"],
        "OUT_END_ID": inputs.get("END_ID", np.full((rows, 1), _NO_TOKEN, np.int32)),
        "OUT_PAD_ID": inputs.get("PAD_ID", np.full((rows, 1), _NO_TOKEN, np.int32)),
    }


def postprocess(codec: TextCodec, inputs: Tensors) -> NDArray[np.object_]:
    """Text of each row, one-dimensional as NVIDIA's clients expect it.

    TOKENS_BATCH is [rows, beams, tokens] and SEQUENCE_LENGTH [rows, beams], of which the first beam is decoded;
    PREVIOUS_TOKENS and IS_FINAL come from the embedded engine.

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
        texts.append(codec.decode_next(previous, new, final=final).encode("utf-8"))
    return np.array(texts, dtype=np.object_)


def _word_lists(codec: TextCodec, words: NDArray[Any] | None, rows: int) -> NDArray[np.int32]:
    """[rows, 2, n]: the words of each row (all rows alike if there is one list)."""
    lists = (
        [[decode_prompt(word) for word in row] for row in np.atleast_2d(words)] if words is not None else [[]]
    )
    encoded = [codec.word_lists(lists[min(row, len(lists) - 1)]) for row in range(rows)]
    width = max(item.shape[1] for item in encoded)
    filled = np.full((rows, 2, width), _NO_TOKEN, np.int32)
    filled[:, 0] = 0
    for row, item in enumerate(encoded):
        filled[row, :, : item.shape[1]] = item
    return filled
