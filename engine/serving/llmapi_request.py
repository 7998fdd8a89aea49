"""A request to the `llmapi` model: its tensors to arguments of TensorRT-LLM's `LLM.generate_async`.

Names are those of NVIDIA's `llmapi` model (`sampling_param_*`), plus what the text-level contract has and that model
lacks. A tensor that is given and cannot be honoured is refused by name.

`SamplingParams` reads "neither top_k nor top_p" as greedy whatever the temperature (tensorrt_llm/sampling_params.py,
`_greedy_decoding`), and a temperature of 0 is an error in some releases. So greedy requests say nothing, and those
that sample always say top_p. Which are which is the same on every engine (`engine.serving.distribution`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.serving.contract import read_text
from engine.serving.distribution import sampling_params
from engine.serving.text import decode_prompt, decode_words

Tensors = Mapping[str, NDArray[Any]]

_PREFIX = "sampling_param_"
# Tensor without its prefix -> argument of SamplingParams and its type.
_PLAIN: Mapping[str, tuple[str, type]] = {
    "max_tokens": ("max_tokens", int),
    "min_tokens": ("min_tokens", int),
    "seed": ("seed", int),
    "best_of": ("best_of", int),
    "end_id": ("end_id", int),
    "frequency_penalty": ("frequency_penalty", float),
    "presence_penalty": ("presence_penalty", float),
    "repetition_penalty": ("repetition_penalty", float),
    "logprobs": ("logprobs", int),
}
# Kinds of guide (executor.h, GuidedDecodingParams::GuideType) -> argument of GuidedDecodingParams and its value.
_GUIDES = ("json", "json_schema", "regex", "ebnf_grammar", "structural_tag")
_REFUSED = ("image_url", "lora_id", "lora_name", "lora_path", "lora_ckpt_source")


@dataclass(frozen=True)
class LlmApiRequest:
    """One generation.

    Attributes:
        prompt: the text to continue.
        sampling: arguments of `SamplingParams`.
        stop_words: end the output where they are met in its text.
        guide: arguments of `GuidedDecodingParams`; None without guided decoding.
        cache_salt: KV cache is shared with requests of the same salt; empty: with those that have none.
        streaming: a response for every step, or one at the end.
        returned: optional outputs that were asked for (`finish_reason`, `stop_reason`, `cumulative_logprob`).
        return_metrics: whether to answer the performance outputs.
        errors_as_output: a failure after the first response is told in the output `error`. For callers within the
            server: tritonserver 2.51 does not hand them an error that is not the first response, and then does
            not unload the model.
    """

    prompt: str
    sampling: Mapping[str, Any]
    stop_words: Sequence[str]
    guide: Mapping[str, Any] | None
    cache_salt: str
    streaming: bool
    returned: frozenset[str]
    return_metrics: bool
    errors_as_output: bool


def read_request(tensors: Tensors) -> LlmApiRequest:
    """Check and take in the tensors of a request.

    Raises:
        RequestError: names the tensor, what is wrong, and what would be right.
    """
    for name in _REFUSED:
        if name in tensors:
            raise RequestError(f"{name} is not supported by the kit's llmapi model; leave it out")
    texts = tensors.get("text_input", np.array([], np.object_))
    if texts.shape != (1,):
        raise RequestError(
            f"text_input has shape {list(texts.shape)}; it must be one text, [1]: requests are batched inside the LLM"
        )
    prompt = decode_prompt(texts[0])
    if not prompt:
        raise RequestError("text_input is empty; give at least one character")
    outputs = ("finish_reason", "stop_reason", "cumulative_logprob")
    metrics = bool(_scalar(tensors, f"{_PREFIX}return_perf_metrics", False))
    return LlmApiRequest(
        prompt=prompt,
        sampling={**_sampling(tensors), "return_perf_metrics": metrics},
        stop_words=decode_words(tensors.get(f"{_PREFIX}stop"), 0, f"{_PREFIX}stop"),
        guide=_guide(tensors),
        cache_salt=read_text(tensors, "cache_salt"),
        streaming=bool(_scalar(tensors, "streaming", False)),
        returned=frozenset(name for name in outputs if _scalar(tensors, f"return_{name}", False)),
        return_metrics=metrics,
        errors_as_output=bool(_scalar(tensors, "errors_as_output", False)),
    )


def _sampling(tensors: Tensors) -> dict[str, Any]:
    given = {name: _scalar(tensors, _PREFIX + name, None) for name in _PLAIN}
    chosen: dict[str, Any] = {
        _PLAIN[name][0]: _PLAIN[name][1](value) for name, value in given.items() if value is not None
    }
    if chosen.get("max_tokens", 1) < 1:
        raise RequestError(f"sampling_param_max_tokens is {chosen['max_tokens']}; it must be 1 or more")
    if chosen.get("end_id", 0) < 0:
        del chosen["end_id"]  # -1 is "the model's own" in the contract
    if not chosen.get("logprobs", 1):
        del chosen["logprobs"]  # to releases, 0 is "none but the chosen token's", which is not none
    if words := decode_words(tensors.get(f"{_PREFIX}bad"), 0, f"{_PREFIX}bad"):
        chosen["bad"] = words
    # The contract's default is the output alone; the LLM API's PyTorch backend knows nothing else.
    if not _scalar(tensors, f"{_PREFIX}exclude_input_from_output", True):
        chosen["exclude_input_from_output"] = False
    return chosen | _randomness(tensors)


def _randomness(tensors: Tensors) -> dict[str, Any]:
    """Temperature, top_k and top_p; none of them for a greedy request (see above)."""
    said = {name: _scalar(tensors, _PREFIX + name, None) for name in ("temperature", "top_k", "top_p")}
    try:
        sampling = sampling_params(**said, seed=0)
    except RequestError as error:
        raise RequestError(f"{_PREFIX}{error}") from None
    if sampling.greedy:
        return {}
    values = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    return values | ({"top_k": sampling.top_k} if sampling.top_k else {})


def _guide(tensors: Tensors) -> dict[str, Any] | None:
    kinds = np.ravel(tensors.get("guided_decoding_guide_type", ()))
    if not len(kinds) or not kinds[0]:
        return None
    kind = decode_prompt(kinds[0])
    if kind not in _GUIDES:
        raise RequestError(f"guided_decoding_guide_type is {kind!r}; it must be one of {', '.join(_GUIDES)}")
    if kind == "json":
        return {"json_object": True}
    guides = np.ravel(tensors.get("guided_decoding_guide", ()))
    if not len(guides) or not guides[0]:
        raise RequestError(f"guided_decoding_guide is missing; {kind} needs one")
    argument = {"json_schema": "json", "ebnf_grammar": "grammar"}.get(kind, kind)
    return {argument: decode_prompt(guides[0])}


def _scalar(tensors: Tensors, name: str, default: Any) -> Any:
    if name not in tensors:
        return default
    value = np.ravel(tensors[name])
    if value.size != 1:
        raise RequestError(f"{name} has {value.size} values; it must have one")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise RequestError(f"{name} is {value[0]}; it must be a finite number")
    return value[0].item()
