"""Speculators by name: what the deployment spec's `speculation.method` may be.

Example:
    >>> create("anpd", ngram=5, draft_length=7).max_draft_length
    7
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from speculators.base import Speculator
from speculators.lookahead import LookaheadSpeculator
from speculators.model_free import MODEL_FREE
from speculators.none import NoSpeculator
from speculators.token_recycling import TokenRecycling
from speculators.windowed import WindowedSpeculator

METHODS: Mapping[str, Callable[..., Speculator]] = {
    "none": NoSpeculator,
    **MODEL_FREE,
    "token_recycling": TokenRecycling,
    "lookahead": LookaheadSpeculator,
    "windowed": WindowedSpeculator,
}
"""Those without weights."""


def settings_of(method: str) -> tuple[str, ...]:
    """Names of the settings that a method has.

    Raises:
        ValueError: no such method.
    """
    return _parameters(_factory(method))


def create(method: str, **settings: Any) -> Speculator:
    """Make the speculator ``method`` with its own settings; those left out take the method's defaults.

    Raises:
        ValueError: no such method, a setting that it does not have, or a value out of range.
    """
    factory, known = _factory(method), settings_of(method)
    for name in settings:
        if name not in known:
            raise ValueError(f"speculator {method}: no setting {name!r}; it has {', '.join(known) or 'none'}")
    return factory(**settings)


@cache  # a plan asks for the same few hundreds of times
def _parameters(factory: Callable[..., Speculator]) -> tuple[str, ...]:
    return tuple(inspect.signature(factory).parameters)


def _factory(method: str) -> Callable[..., Speculator]:
    if method in METHODS:
        return METHODS[method]
    nearest = difflib.get_close_matches(method, METHODS, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"no speculator {method!r}{hint} Known: {', '.join(sorted(METHODS))}")
