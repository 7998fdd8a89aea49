"""Checks and measures on one CUDA device; see `planner.bench.cuda`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STARTED = time.monotonic()  # before PyTorch is imported, which takes its time too


def main(words: Sequence[str]) -> int:
    """0: measured; 1: a check has failed; 2: it cannot be done here."""
    parser = argparse.ArgumentParser(prog="python -m planner.bench.cuda", description=__doc__)
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="for results.json")
    parser.add_argument("--toy", action="store_true", help="toy sizes, which a CPU has done in seconds")
    arguments = parser.parse_args(words)
    try:
        import torch
    except ImportError:
        return _refuse("PyTorch is not installed")
    if not arguments.toy and not torch.cuda.is_available():
        return _refuse("there is no CUDA device; --toy runs anywhere")
    from planner.bench.cuda.run import RESULTS, Bench
    from planner.bench.cuda.shapes import REAL, TOY
    from planner.bench.cuda.table import show

    if (arguments.into / RESULTS).exists():
        return _refuse(
            f"{arguments.into / RESULTS} is of an earlier run, and is kept; give another directory"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        arguments.into.mkdir(parents=True, exist_ok=True)
        bench = Bench(TOY if arguments.toy else REAL, arguments.into, device, started=STARTED, report=_report)
        results = bench.run()
    except OSError as error:
        return _refuse(f"{arguments.into} cannot be written to ({error})")
    show(results)
    failed = [check for check in results.checks if not check.passed]
    for check in failed:
        print(f"failed: {check.name}: error {check.error:.2g}, tolerance {check.tolerance:.2g}")
    print(arguments.into / RESULTS)
    return 1 if failed else 0


def _report(line: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {line}", flush=True)


def _refuse(why: str) -> int:
    print(f"planner.bench.cuda: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
