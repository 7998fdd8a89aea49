"""Networks that are compiled when a test comes to use them.

A tiny network takes OpenVINO many times as long to compile as a test to run, for each number of tokens once more
(`engine.buckets`); most tests come to two or three of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import openvino_graphs
from engine.rows_at_once import most_rows


def _of_the_first(first_row: Callable[[int], NDArray[np.float32]], buckets: Sequence[int], room: int) -> int:
    """What `most_rows` says without asking the larger of the networks that are compiled for a number of tokens."""
    return most_rows(first_row, [min(buckets)], room)


@contextmanager
def compiled_when_used() -> Iterator[None]:
    """Compile networks, but for the first of each engine, when they are run; run none only to make it ready."""

    class WhenUsed(openvino_graphs._Compiled):
        def __init__(self, *arguments: Any) -> None:
            self._arguments: tuple[Any, ...] | None = arguments
            self._caches: Any = None

        def __getattr__(self, name: str) -> Any:
            """What a compiled network has and this one has not yet."""
            arguments, self._arguments = self.__dict__.get("_arguments"), None
            if arguments is None:
                raise AttributeError(name)
            super().__init__(*arguments)
            if self._caches is not None:
                super().use_caches(self._caches)
            return getattr(self, name)

        def use_caches(self, caches: Any) -> None:
            self._caches = caches
            if self._arguments is None:
                super().use_caches(caches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_graphs, "_Compiled", WhenUsed)
        patch.setattr(openvino_graphs.PagedGraph, "_warm_up", lambda graph, longest: None)
        patch.setattr(openvino_graphs, "most_rows", _of_the_first)
        yield
