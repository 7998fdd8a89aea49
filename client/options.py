"""What a caller may ask of a generation, and the check that it makes sense before anything is sent.

A method takes these as keyword arguments (``client.generate(prompt, max_tokens=32, temperature=0.7)``). The
same dictionary can be kept and passed on:

    options: SamplingOptions = {"max_tokens": 32, "temperature": 0.7, "seed": 1}
    client.generate(prompt, **options)
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from client.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 64

_INT32_MAX = 2**31 - 1
_UINT64_MAX = 2**64 - 1


class SamplingOptions(TypedDict, total=False):
    """How to generate. Every key is optional, and None means the default."""

    max_tokens: int
    """Most tokens to generate, 1 or more; 64 by default."""
    temperature: float
    """0, the default, is greedy: always the likeliest token. Above: draws from softmax(logits / this)."""
    top_k: int | None
    """Sample among the k most likely tokens only; 0 or None: no limit. Without effect when greedy."""
    top_p: float | None
    """Sample among the fewest tokens whose probabilities sum to at least this, in (0, 1]; None: all."""
    seed: int | None
    """Random seed in 0 .. 2**64 - 1 of a sampled request. None: the server's own choice."""
    stop: Sequence[str]
    """Generation ends where one of these strings comes up in the text; the string is not part of the output."""
    min_tokens: int | None
    """The end token is not allowed before this many tokens."""
    num_draft_tokens: int | None
    """Most draft tokens to verify in one step; 0: no speculation; None: the server's choice."""
    cache_salt: str | None
    """The prompt shares KV cache with requests of the same salt only; None: with those that have none. One of its
    own finds and leaves nothing that others could use."""
    return_log_probs: bool
    """Whether to return the natural log-probability of each generated token."""


def check_options(options: Mapping[str, Any]) -> SamplingOptions:
    """`options` with defaults filled in and None left out.

    Raises:
        InvalidRequest: a name that is not an option, or a value that no server can serve.
    """
    for name in options:
        if name not in _CHECKS:
            raise InvalidRequest(f"there is no option {name!r}{_nearest(name)}", field=name)
    given = {name: value for name, value in options.items() if value is not None}
    checked: dict[str, Any] = {"max_tokens": DEFAULT_MAX_TOKENS, "temperature": 0.0, **given}
    for name, value in checked.items():
        wanted = _CHECKS[name](value)
        if wanted:
            raise InvalidRequest(f"{name} must be {wanted}, not {value!r}", field=name)
        checked[name] = _plain(value)
    if checked.get("min_tokens", 0) > checked["max_tokens"]:
        raise InvalidRequest(
            f"min_tokens ({checked['min_tokens']}) must not exceed max_tokens ({checked['max_tokens']})",
            field="min_tokens",
        )
    return cast(SamplingOptions, checked)


def check_deadline(deadline: float | None) -> None:
    """Raise :class:`InvalidRequest` unless `deadline` is None or a positive, finite number of seconds."""
    if deadline is not None and not (_is_number(deadline) and math.isfinite(deadline) and deadline > 0):
        raise InvalidRequest(
            f"deadline must be a number of seconds above 0, or None, not {deadline!r}", field="deadline"
        )


def check_prompt(prompt: object) -> str:
    """`prompt` if it is text that UTF-8 can carry; raises :class:`InvalidRequest` otherwise."""
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt must be a str, not {type(prompt).__name__}", field="prompt")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"prompt has a lone surrogate at character {error.start}, which is not valid text", field="prompt"
        ) from None
    return prompt


def check_token_ids(ids: Sequence[int]) -> list[int]:
    """`ids` as a list; raises :class:`InvalidRequest` unless there are some, all INT32 and 0 or above."""
    tokens = list(ids)
    if not tokens:
        raise InvalidRequest("ids must hold at least one token id", field="ids")
    for position, token in enumerate(tokens):
        if wanted := _integer(token, 0, _INT32_MAX):
            raise InvalidRequest(f"ids[{position}] must be {wanted}, not {token!r}", field="ids")
    return [int(token) for token in tokens]


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, _CHECKS, n=1)
    return f"; did you mean {close[0]!r}?" if close else f" (there are: {', '.join(_CHECKS)})"


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and (isinstance(value, (int, float)) or hasattr(value, "__float__"))


def _plain(value: Any) -> Any:
    """A checked value as Python's own type: JSON knows no numpy scalars."""
    if isinstance(value, (bool, Sequence)):
        return value
    return value.__index__() if hasattr(value, "__index__") else float(value)


def _integer(value: object, low: int, high: int) -> str | None:
    """What `value` should be, if it is not an integer (numpy's included) in `low` .. `high`."""
    valid = not isinstance(value, bool) and hasattr(value, "__index__") and low <= value.__index__() <= high
    return None if valid else f"an integer from {low} to {high}"


def _temperature(value: Any) -> str | None:
    return (
        None if _is_number(value) and math.isfinite(value) and value >= 0 else "a finite number, 0 or above"
    )


def _top_p(value: Any) -> str | None:
    return None if _is_number(value) and 0 < value <= 1 else "above 0 and at most 1"


def _stop(value: Any) -> str | None:
    valid = (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and all(isinstance(word, str) and word for word in value)
    )
    return None if valid else "a list of non-empty strings"


def _salt(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a non-empty string"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "True or False"


# Each check gives None for a good value and otherwise says what would be one.
_CHECKS = {
    "max_tokens": lambda value: _integer(value, 1, _INT32_MAX),
    "temperature": _temperature,
    "top_k": lambda value: _integer(value, 0, _INT32_MAX),
    "top_p": _top_p,
    "seed": lambda value: _integer(value, 0, _UINT64_MAX),
    "stop": _stop,
    "min_tokens": lambda value: _integer(value, 0, _INT32_MAX),
    "num_draft_tokens": lambda value: _integer(value, 0, _INT32_MAX),
    "cache_salt": _salt,
    "return_log_probs": _flag,
}
