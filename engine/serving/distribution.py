"""What a request draws its tokens from: one reading of temperature, top_k and top_p for every door and engine.

NVIDIA's engines each have their own idea of what was left out. The C++ backend takes the likeliest token unless top_k
or top_p is given, whatever the temperature (`regularizeTopKTopP` in cpp/tensorrt_llm/kernels/samplingTopKKernels.h),
and so does `SamplingParams` of the LLM API. Here, a request that says nothing, temperature 0 or top_k 1 is greedy, and
one that says anything else samples; what it leaves open is temperature 1 and all tokens, as with NVIDIA. For top_k and
top_p, 0 says nothing: their clients send it for "off".
"""

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.request import SamplingParams

Tensors = Mapping[str, NDArray[Any]]
_NAMES = ("temperature", "runtime_top_k", "runtime_top_p")


def sampling_params(
    *, temperature: float | None, top_k: float | None, top_p: float | None, seed: int | None
) -> SamplingParams:
    """The distribution that a request means; None is what it does not say.

    Raises:
        RequestError: a value is out of range.
    """
    if temperature is None:
        temperature = 1.0 if top_k or top_p else 0.0
    chosen = secrets.randbits(64) if seed is None else seed
    return SamplingParams(float(temperature), int(top_k or 0), float(top_p or 1.0), chosen)


def for_the_backend(sampling: SamplingParams, inputs: Tensors) -> dict[str, NDArray[Any]]:
    """A row's inputs with nothing left to the C++ backend's own ideas.

    Greedy is top_k 1 alone (some releases refuse temperature 0); sampling is all three, and a seed, because the
    backend's is the same for every request.
    """
    said = {name: value for name, value in inputs.items() if name not in _NAMES}
    if sampling.greedy:
        return said | {"runtime_top_k": np.array([[1]], np.int32)}
    return {
        "seed": np.array([[sampling.seed]], np.uint64),
        **said,
        "temperature": np.array([[sampling.temperature]], np.float32),
        "runtime_top_k": np.array([[sampling.top_k]], np.int32),
        "runtime_top_p": np.array([[sampling.top_p]], np.float32),
    }
