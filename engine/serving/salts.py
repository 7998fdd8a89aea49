"""Whose KV cache rows a request may take over, in a service that several tenants share."""

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGITS = 32


def parted(inputs: Mapping[str, NDArray[Any]], rows: int) -> dict[str, NDArray[Any]]:
    """Inputs with a `cache_salt` in each row: its own, or one that no other request has.

    Whoever gives none then shares nothing with others, and learns nothing of them by how soon the first token comes.
    """
    given = np.ravel(inputs.get("cache_salt", np.array([b""], np.object_))).tolist() or [b""]
    salts = [
        given[min(row, len(given) - 1)] or secrets.token_hex(_DIGITS // 2).encode() for row in range(rows)
    ]
    return {**inputs, "cache_salt": np.array(salts, np.object_).reshape(rows, 1)}
