"""Request parameters that no model here reads: misspelt inputs, as a rule.

Triton's generate extension makes a parameter of every JSON field that is not an input, and hands it to the models of an
ensemble, where nobody would look at it: `{"max_token": 20}` would be answered with another length than was asked for.
"""

import difflib
import json
import re
from collections.abc import Iterable

from engine.errors import RequestError

# What Triton's front ends, its clients and tracing send along, and names of people, which decide nothing here.
_HARMLESS = frozenset(
    (
        *("id", "priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"),
        *("user", "headers"),
    )
)
# Headers that an operator has Triton pass on are parameters, too. Most have a hyphen in their name, which no input has.
_HEADERS = frozenset(
    (
        *(
            "accept",
            "authorization",
            "connection",
            "cookie",
            "date",
            "expect",
            "forwarded",
            "from",
            "host",
            "origin",
        ),
        *("pragma", "range", "referer", "te", "trailer", "upgrade", "via", "warning"),
        *("traceparent", "tracestate", "baggage", "b3"),
    )
)
_HARMLESS_PREFIX = "triton_"
# Names that other servers have for an input, too far from it in spelling.
_OTHER_NAMES = {
    "stop": "stop_words",
    "logprobs": "return_log_probs",
    "n_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "do_sample": "temperature",
    "num_beams": "beam_width",
    "n": "num_return_sequences",
    "prompt": "text_input",
}


def refuse_unknown(parameters: str, inputs: Iterable[str]) -> None:
    """Refuse a request with a parameter that looks like an input.

    Args:
        parameters: the request's, as the JSON object that the Python backend gives.
        inputs: names of the inputs of the model that was asked.

    Raises:
        RequestError: names the parameter, and the input that it may be meant for.
    """
    known = list(inputs)
    for name in json.loads(parameters or "{}"):
        lower = name.lower()
        if name in _HARMLESS or lower in _HEADERS or lower.startswith((_HARMLESS_PREFIX, "x-")):
            continue
        if name in known:
            raise RequestError(f"{name} is an input, not a parameter of the request; send it as a tensor")
        spelt = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
        near = [meant for meant in (_OTHER_NAMES.get(spelt),) if meant in known]
        near = near or difflib.get_close_matches(spelt, known, n=1, cutoff=0.75)
        if near or "-" not in name:
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
            raise RequestError(f"unknown parameter {name!r}; {hint}")
