"""The clients of a soak."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.deploy.serving import Service
from tests.deploy.throng import Throng
from tests.soak.questions import DOORS, Answer, Asker, Refused
from tests.soak.records import Records

_REST_SECONDS = 0.2
_ABANDONED_SHARE = 0.05


class Clients(Throng):
    """Each records how what it asked has ended."""

    def __init__(
        self,
        service: Service,
        asked: Sequence[Mapping[str, Any]],
        expected: Sequence[Answer],
        count: int,
        limit: float,
        seed: str,
        records: Records,
    ) -> None:
        """`limit`: seconds of a request; `expected`: what was answered to each of `asked` when asked alone."""
        self._service, self._asked, self._expected = service, asked, expected
        self._limit, self._records = limit, records
        super().__init__(count, seed)

    def run(self, chance: random.Random) -> None:
        asker = Asker(self._service.http_port, self._service.grpc_port, self._limit)
        often = [way for way in asker.ways if way != "one-shot, abandoned"]
        while not self.ended.is_set():
            number = chance.randrange(len(self._asked))
            rare = chance.random() < _ABANDONED_SHARE
            way = "one-shot, abandoned" if rare else chance.choice(often)
            door = chance.choice(DOORS)
            begun = time.monotonic()
            outcome, told = self._ask(asker, way, door, number)
            seconds = time.monotonic() - begun
            outcome = "late" if seconds >= self._limit else outcome
            fields = {"way": way, "door": door, "question": number, "outcome": outcome, "told": told}
            self._records.write("end", seconds=round(seconds, 3), **fields)
            if outcome in ("refused", "failed"):
                self.ended.wait(_REST_SECONDS)
        asker.close()

    def _ask(self, asker: Asker, way: str, door: str, number: int) -> tuple[str, str]:
        try:
            answer = asker.ways[way](door, self._asked[number])
        except Refused as error:
            return ("refused" if "queue is full" in str(error) else "failed"), str(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return "failed", f"{type(error).__name__}: {error}"
        if answer is None:
            return "left", ""
        expected = self._expected[number]
        return ("right", "") if answer.like(expected) else ("wrong", f"{answer} instead of {expected}")
