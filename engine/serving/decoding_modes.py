"""What engines that draft within themselves make of a request's sampling parameters, and what they pass over.

NVIDIA's C++ backend takes every parameter and uses those that its decoding mode has (`DecodingMode` in
cpp/include/tensorrt_llm/executor/types.h, the layers in cpp/tensorrt_llm/layers). The four modes that draft have no
penalties and no banned tokens. Beyond that:

 - *medusa* draws with top_k alone, and takes 0 for "no token", not for "all of them";
 - *lookahead* always takes the likeliest token (`maxTopK = 1`);
 - *eagle* too: greedy sampling is the default of `EagleConfig`, and no parameter of the model changes it;
 - *redrafter* too, unless the engine was built for sampling: then it always samples, by temperature alone.

A request that asks for anything else is refused, so that nobody gets an answer to another question than the one asked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from engine.errors import RequestError
from engine.request import SamplingParams
from engine.serving.contract import refuse_unsupported

_PENALTIES: Mapping[str, tuple[float, ...]] = {
    "repetition_penalty": (0, 1),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}
_MIN_TOKENS: Mapping[str, tuple[float, ...]] = {"min_tokens": (0,), "min_length": (0,)}
_GREEDY = "temperature 0 or top_k 1, or none of temperature, top_k and top_p"


@dataclass(frozen=True)
class DecodingMode:
    """One decoding mode.

    Attributes:
        name: as in the backend's parameter `decoding_mode`.
        honours: whether it draws as asked.
        right: what to ask for instead.
        min_tokens: whether it keeps the end token back.
    """

    name: str
    honours: Callable[[SamplingParams], bool]
    right: str
    min_tokens: bool

    def check(self, sampling: SamplingParams, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Refuse what the engine would pass over.

        Raises:
            RequestError: names the parameter and what would be right.
        """
        who = f"an engine of decoding_mode {self.name}"
        refuse_unsupported(
            inputs, who, _PENALTIES if self.min_tokens else {**_PENALTIES, **_MIN_TOKENS}, ("bad_words_list",)
        )
        if not self.honours(sampling):
            raise RequestError(
                f"{who} cannot draw with temperature {sampling.temperature:g}, top_k {sampling.top_k} and "
                f"top_p {sampling.top_p:g}; send {self.right}"
            )


def decoding_mode(name: str, *, redrafter_samples: bool) -> DecodingMode | None:
    """The mode of this name; None for engines that do not draft (an empty name), which honour everything.

    Args:
        name: parameter `decoding_mode` of the target.
        redrafter_samples: whether a ReDrafter engine was built for sampling.

    Raises:
        ValueError: no mode that drafts within an engine has this name.
    """
    if not name:
        return None
    modes = [
        DecodingMode("medusa", _by_top_k, "top_k 1, or temperature 1 with a larger top_k and no top_p", True),
        DecodingMode("lookahead", _greedy, _GREEDY, True),
        DecodingMode("eagle", _greedy, _GREEDY, False),
        DecodingMode(
            "redrafter", _by_temperature, "a temperature above 0, and neither top_k nor top_p", False
        )
        if redrafter_samples
        else DecodingMode("redrafter", _greedy, _GREEDY, False),
    ]
    for mode in modes:
        if mode.name == name:
            return mode
    known = ", ".join(mode.name for mode in modes)
    raise ValueError(f"tensorrt_llm_bls: decoding_mode is {name!r}; it must be one of {known}, or left out")


def _greedy(sampling: SamplingParams) -> bool:
    return sampling.greedy


def _by_top_k(sampling: SamplingParams) -> bool:
    return sampling.greedy or (sampling.temperature == 1 and sampling.top_k > 0 and sampling.top_p == 1)


def _by_temperature(sampling: SamplingParams) -> bool:
    return not sampling.greedy and sampling.top_k == 0 and sampling.top_p == 1
