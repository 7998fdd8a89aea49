"""The command; exit status 1 if something did not hold. The last line is a JSON document for programs."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.blows import Blows
from tests.chaos.traffic import Traffic, ask_fixed
from tests.deploy.serving import Service, served

_DISK_MIB = 192
_INSIDE = "DRAFTHOUSE_CHAOS_DISK"


def main() -> int:
    """Deal the blows, and judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--blows", type=int, default=20, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the dice (%(default)s)")
    parser.add_argument(
        "--back",
        type=float,
        default=30.0,
        help="seconds to be back within; a request has twice as long (%(default)s)",
    )
    options = parser.parse_args()
    disk = os.environ.get(_INSIDE)
    if disk is None and _can_mount():
        return _on_a_disk_of_its_own()
    if not disk:
        print("the disk is left in peace: it takes `unshare` and the right to use it", flush=True)
    folder = Path(disk or tempfile.mkdtemp(prefix="chaos-"))
    try:
        with served(folder, on_failure="restart", silence_seconds=15) as service:
            return _run(service, options.blows, options.seed, options.back, disk=bool(disk))
    finally:
        if not disk:
            shutil.rmtree(folder)


def _run(service: Service, blows: int, seed: int, back: float, *, disk: bool) -> int:
    expected = ask_fixed(service.http_port)
    assert expected, "the service does not answer at all"
    chance = random.Random(seed)
    complaints, longest = [], 0.0
    with Traffic(service.http_port, expected, seed=seed, limit=2 * back) as traffic:
        dice = Blows(service, traffic, chance, disk=disk)
        for number in range(1, blows + 1):
            time.sleep(chance.uniform(0.5, 2.0))
            begun = time.monotonic()
            what = dice.deal()
            seconds = _back_after(service, begun, back)
            answer = ask_fixed(service.http_port, back)
            longest = max(longest, seconds)
            print(f"{number:4} {what:45} back after {seconds:5.1f} s", flush=True)
            if seconds >= back:
                complaints.append(f"{what}: not back within {back:g} s")
            if answer is not None and answer != expected:
                complaints.append(f"{what}: the fixed prompt is answered otherwise")
        traffic.end()
    status = service.end()
    tally = traffic.tally
    complaints += [f"without an end: {late}" for late in tally.late]
    complaints += [f"{tally.wrong} wrong answers"] if tally.wrong else []
    complaints += [f"serve ended with {status}: {service.output[-500:]}"] if status != 130 else []
    complaints += [f"left behind: {service.left_behind()}"] if service.left_behind() else []
    for complaint in complaints:
        print(complaint)
    figures = {"blows": blows, "seed": seed, "answered": tally.answered, "failed": tally.failed}
    times = {"slowest_request_s": round(tally.slowest, 1), "longest_outage_s": round(longest, 1)}
    print(json.dumps({**figures, **times, "wrong": tally.wrong, "complaints": complaints}))
    return 1 if complaints else 0


def _back_after(service: Service, begun: float, back: float) -> float:
    """Seconds from then until the service answers twice, a moment apart: a blow may take a while to be felt."""
    answered = 0.0
    while time.monotonic() - begun < back:
        if ask_fixed(service.http_port) is None:
            answered = 0.0
        elif answered and time.monotonic() - answered > 1.0:
            break
        else:
            answered = answered or time.monotonic()
        time.sleep(0.1)
    service.remember_places()
    return (answered or time.monotonic()) - begun


def _can_mount() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
    )


def _on_a_disk_of_its_own() -> int:
    """Run again, in a namespace in which a small file system in memory can be mounted."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        script = 'mount -t tmpfs -o size="$1"m tmpfs "$2" && shift 2 && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", script, "sh", str(_DISK_MIB), folder]
        again = [sys.executable, "-m", "tests.chaos", *sys.argv[1:]]
        return subprocess.run([*command, *again], env={**os.environ, _INSIDE: folder}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
