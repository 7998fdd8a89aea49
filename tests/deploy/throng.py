"""Clients of a service who ask all the time, in threads, until they are to end."""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from typing import TypeVar

_Throng = TypeVar("_Throng", bound="Throng")


class Throng(ABC):
    """`count` threads, each with dice of its own; a context manager that has them end in any case."""

    def __init__(self, count: int, seed: object) -> None:
        """Begin; the last thing that the beginning of a class of its own does."""
        self.ended = threading.Event()
        self._threads = [
            threading.Thread(target=self.run, args=(random.Random(f"{seed}/{number}"),), daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self: _Throng) -> _Throng:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()

    def end(self) -> None:
        """Wait for what is under way."""
        self.ended.set()
        for thread in self._threads:
            thread.join()

    @abstractmethod
    def run(self, chance: random.Random) -> None:
        """What one of them does until it has `ended`."""
