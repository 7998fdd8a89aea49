"""The command; exit status 1 if something did not hold. The last line is a JSON document for programs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deploy.metrics import running_requests
from deploy.processes import of_session
from tests.deploy.serving import Service, served
from tests.soak.clients import Clients
from tests.soak.memory import Sample, measure, slopes
from tests.soak.questions import Asker, questions
from tests.soak.records import Records

_QUESTIONS = 42
_IDLE_SECONDS = 120.0
_SILENCE_SECONDS = 30.0
_FAULTS = ("gRPC streams at", "ASSERTION FAILED: prior > 0")
"""What `serve` or the log says of the two faults of Triton's gRPC server (docs/serve.md, known limits) that clients
bring about who leave a stream. They are counted, and the service is begun anew, as `on_failure: restart` does.
"""


def main() -> int:
    """Ask, and judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=120.0, help="in all, with those of the records (%(default)s)"
    )
    parser.add_argument("--concurrency", type=int, default=8, help="clients (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of questions and ways (%(default)s)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of a request (%(default)s)")
    parser.add_argument(
        "--every", type=float, default=10.0, help="seconds between two looks at memory (%(default)s)"
    )
    parser.add_argument(
        "--into", type=Path, default=Path("runs/soak"), help="directory of the records (%(default)s)"
    )
    parser.add_argument("--judge", action="store_true", help="only say what the records tell")
    options = parser.parse_args()
    records = Records(options.into)
    end = time.monotonic() + 60 * options.minutes  # however often the service is begun anew
    while (left := 60 * options.minutes - records.seconds()) > 0 and not options.judge:
        with (
            tempfile.TemporaryDirectory(prefix="soak-") as folder,
            served(Path(folder), silence_seconds=_SILENCE_SECONDS) as service,
        ):
            try:
                _run(service, records, options, left)
            finally:
                shutil.copy(Path(folder) / "runs" / "triton-tiny.log", records.log)
        if not records.met_a_fault() or time.monotonic() > end:
            break
    return _judge(records)


def _run(service: Service, records: Records, options: argparse.Namespace, seconds: float) -> None:
    asked = questions(_QUESTIONS, options.seed)
    alone = Asker(service.http_port, service.grpc_port, options.limit)
    expected = [alone.one_shot("ensemble", fields) for fields in asked]
    alone.close()
    run, session = records.begin(), service.guard()
    begun = looked = time.monotonic()
    clients = Clients(
        service, asked, expected, options.concurrency, options.limit, f"{options.seed}/{run}", records
    )
    with clients:
        while (passed := time.monotonic() - begun) < seconds and of_session(session):
            records.write("memory", hours=passed / 3600, mib=measure(of_session(session)))
            looked += options.every
            time.sleep(max(0.0, looked - time.monotonic()))
        clients.end()
    if not of_session(session) or _met_a_fault(
        service
    ):  # of the latter some may be there still, about to end
        service.status()
        text = f"serve ended with {service.process.poll()}: {service.output[-500:]}"
        records.write("fault" if _met_a_fault(service) else "complaint", text=text)
        return
    address = f"http://127.0.0.1:{service.metrics_port}/metrics"
    end = time.monotonic() + _IDLE_SECONDS
    while running_requests(address) and time.monotonic() < end:
        time.sleep(0.1)
    if still := running_requests(address):
        records.write(
            "complaint", text=f"{still} requests still run {_IDLE_SECONDS:g} s after the last client left"
        )
    status = service.end()
    records.write("said", text=service.output[-2000:])
    if status != 130:
        records.write("complaint", text=f"serve ended with {status}: {service.output[-500:]}")


def _met_a_fault(service: Service) -> bool:
    told = service.output + (service.folder / "runs" / "triton-tiny.log").read_text(errors="replace")
    return any(fault in told for fault in _FAULTS)


def _judge(records: Records) -> int:
    found = records.read()
    runs = [[Sample(one["hours"], one["mib"]) for one in run if one["kind"] == "memory"] for run in found]
    growth = slopes([run for run in runs if run])
    ends = [one for run in found for one in run if one["kind"] == "end"]
    ways: dict[str, dict[str, int]] = {}
    for one in ends:
        ways.setdefault(one["way"], {}).setdefault(one["outcome"], 0)
        ways[one["way"]][one["outcome"]] += 1
    print(f"{'way of asking':24} outcomes")
    for way, outcomes in sorted(ways.items()):
        print(f"{way:24} {', '.join(f'{count} {name}' for name, count in sorted(outcomes.items()))}")
    print(f"{'process':24} {'MiB':>8} {'MiB an hour':>12}  95 % interval")
    for name, slope in growth.items():
        print(f"{name:24} {slope.mib:8.1f} {slope.value:12.2f}  {slope.low:.2f} to {slope.high:.2f}")
    complaints = [one["text"] for run in found for one in run if one["kind"] == "complaint"]
    faults = [one["text"] for run in found for one in run if one["kind"] == "fault"]
    cut_off = [one for run in found for one in _cut_off(run)]
    bad = [one for one in ends if one["outcome"] in ("wrong", "late", "failed")]
    complaints += [_told(one) for one in bad if one not in cut_off]
    if "all" in growth and growth["all"].grows:  # a process alone goes up and down by whole pools
        complaints.append("the server's memory grows")
    for complaint in complaints[:20]:
        print(complaint)
    counts: dict[str, Any] = dict.fromkeys(("right", "wrong", "left", "refused", "failed", "late"), 0)
    for one in ends:
        counts[one["outcome"]] += 1
    whole = growth.get("all")
    figures = {
        "minutes": round(records.seconds() / 60, 1),
        **counts,
        "slowest_s": max((one["seconds"] for one in ends), default=0.0),
        "mib_per_hour": [round(value, 2) for value in (whole.value, whole.low, whole.high)]
        if whole
        else None,
        "faults_of_triton": len(faults),
        "cut_off": len(cut_off),
        "complaints": len(complaints),
    }
    print(json.dumps(figures))
    return 1 if complaints else 0


def _cut_off(run: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What failed when a service ended by a fault of Triton's: after the last look at its memory."""
    if not any(one["kind"] == "fault" for one in run):
        return []
    last = max(index for index, one in enumerate(run) if one["kind"] == "memory")
    return [one for one in run[last:] if one.get("outcome") == "failed"]


def _told(one: dict[str, Any]) -> str:
    return f"{one['outcome']}: {one['way']} of {one['door']}, question {one['question']}: {one['told'][:300]}"


if __name__ == "__main__":
    sys.exit(main())
