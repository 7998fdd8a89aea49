"""The command; exit status 1 if something did not hold. The last line is a JSON document for programs."""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.deploy.serving import Service, served
from tests.deploy.throng import Throng
from tests.overload.hostile import KINDS
from tests.soak.questions import Answer, Asker, Refused

_LIMITS = {"max_one_shot_tokens": 64, "max_queue_seconds": 60.0, "max_request_seconds": 120.0}
_PLACES = 4
_OVERLOAD = 10
_HOSTILE_SHARE = 0.1
_ALLOWED_RATIO = 2.0
_SECONDS = 120.0
_REST_SECONDS = 0.2
_QUESTIONS = [
    {"text_input": f"{word} and", "max_tokens": 24}
    for word in ["one", "two", "three", "four", "five", "six", "seven"]
]


class Crowd(Throng):
    """Well-behaved clients."""

    def __init__(self, service: Service, expected: Sequence[Answer], count: int, seed: int) -> None:
        self.latencies: list[tuple[float, float]] = []
        """When each answer had come, and how long it took."""
        self.wrong = self.refused = 0
        self._service, self._expected = service, expected
        super().__init__(count, seed)

    def run(self, chance: random.Random) -> None:
        asker = Asker(self._service.http_port, self._service.grpc_port, _SECONDS)
        while not self.ended.is_set():
            number, begun = chance.randrange(len(_QUESTIONS)), time.monotonic()
            answer = None
            while answer is None and not self.ended.is_set():
                try:
                    answer = asker.ways["HTTP stream"]("ensemble", _QUESTIONS[number])
                except (Refused, OSError, http.client.HTTPException):
                    self.refused += 1
                    self.ended.wait(_REST_SECONDS)
            if answer is not None:
                now = time.monotonic()
                self.latencies.append((now, now - begun))
                self.wrong += not answer.like(self._expected[number])
        asker.close()


def _hostile(port: int, number: int, seed: int) -> None:
    """One client who means no good, until it is ended; in a process, whose work is not on the account of others."""
    chance = random.Random(f"{seed}/{number}/hostile")
    while True:
        number += 1
        try:
            KINDS[number % len(KINDS)](port, chance)
        except (OSError, http.client.HTTPException):
            time.sleep(_REST_SECONDS)


def main() -> int:
    """Measure, and judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.overload", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=4, help="each without and with hostile clients (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of a stretch (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the dice (%(default)s)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="overload-") as folder,
        served(Path(folder), engine=_LIMITS) as service,
    ):
        return _run(service, options)


def _run(service: Service, options: argparse.Namespace) -> int:
    clients = _PLACES * _OVERLOAD
    bad = round(clients * _HOSTILE_SHARE)
    alone = Asker(service.http_port, service.grpc_port, _SECONDS)
    expected = [alone.one_shot("ensemble", fields) for fields in _QUESTIONS]
    alone.close()
    crowd = Crowd(service, expected, clients - bad, options.seed)
    found: dict[bool, list[list[float]]] = {False: [], True: []}
    time.sleep(options.seconds / 4)
    for _ in range(options.rounds):
        for hostile in (False, True):
            others = [
                multiprocessing.Process(
                    target=_hostile, args=(service.http_port, number, options.seed), daemon=True
                )
                for number in range(bad if hostile else 0)
            ]
            for other in others:
                other.start()
            time.sleep(options.seconds / 4)  # until it is felt
            begun = time.monotonic()
            time.sleep(options.seconds)
            ended = time.monotonic()
            for other in others:
                other.kill()
                other.join()
            stretch = [seconds for when, seconds in list(crowd.latencies) if begun <= when <= ended]
            found[hostile].append(stretch)
            who = f"with {bad} hostile" if hostile else "without hostile"
            print(f"{who:16} {len(stretch):5} answers, {_told(stretch)}", flush=True)
            time.sleep(options.seconds / 4)
    crowd.end()
    return _judge(found, crowd, clients, bad)


def _judge(found: dict[bool, list[list[float]]], crowd: Crowd, clients: int, bad: int) -> int:
    whole = [np.concatenate(found[hostile]) for hostile in (False, True)]
    calm, rough = (np.percentile(seconds, 95) for seconds in whole)
    by_round = [
        float(np.percentile(after, 95) / np.percentile(before, 95))
        for before, after in zip(found[False], found[True], strict=True)
        if before and after
    ]
    ratio = float(rough / calm)
    complaints = []
    if ratio > _ALLOWED_RATIO:
        complaints.append(f"the 95th percentile is {ratio:.2f} times that without hostile clients")
    if crowd.wrong:
        complaints.append(f"{crowd.wrong} wrong answers")
    for complaint in complaints:
        print(complaint)
    print(
        json.dumps(
            {
                "clients": clients,
                "hostile": bad,
                "answers": [len(seconds) for seconds in whole],
                "p50_s": [round(float(np.median(seconds)), 3) for seconds in whole],
                "p95_s": [round(float(calm), 3), round(float(rough), 3)],
                "ratio": round(ratio, 2),
                "ratio_by_round": [round(value, 2) for value in by_round],
                "refused": crowd.refused,
                "wrong": crowd.wrong,
                "complaints": complaints,
            }
        )
    )
    return 1 if complaints else 0


def _told(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    middle, most = np.percentile(seconds, (50, 95))
    return f"median {middle:.2f} s, 95th percentile {most:.2f} s"


if __name__ == "__main__":
    sys.exit(main())
