"""An arm's program, as the bench sees it: started, asked, and ended."""

import contextlib
import json
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deployments.errors import DrafthouseError
from planner.bench.peers.arms import Arm
from planner.bench.peers.protocol import Answer

_ROOT = Path(__file__).parents[3]
LOAD_SECONDS = 180.0
ANSWER_SECONDS = 300.0
TOKEN_SECONDS = 0.05  # more for each token that is read or written


def answer_seconds(prompts: Sequence[Sequence[int]], max_tokens: int) -> float:
    """How long the answers may take."""
    return ANSWER_SECONDS + TOKEN_SECONDS * sum(len(prompt) + max_tokens for prompt in prompts)


class PeerError(DrafthouseError, RuntimeError):
    """An engine's program failed or did not answer in time; names its log."""


class PeerProcess:
    """A running arm; ends with the `with` block.

    Args:
        arm: what to start.
        python: interpreter of the environment that the engine is installed in.
        log: where its standard error goes.
        variables: its environment variables.
    """

    def __init__(self, arm: Arm, python: Path, log: Path, variables: Mapping[str, str]) -> None:
        self.arm = arm
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", arm.module, json.dumps(arm.settings)],
                cwd=Path.cwd(),
                env={**variables, "PYTHONPATH": str(_ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )

    def wait_until_ready(self) -> dict[str, str]:
        """Versions that it reports once its model is loaded.

        Raises:
            PeerError: it ended, or takes too long.
        """
        versions: dict[str, str] = self._read(LOAD_SECONDS)
        return versions

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, *, seed: int = 0) -> list[Answer]:
        """Answers to prompts that are asked at once, the first of which has the seed, and each further one the next.

        Raises:
            PeerError: it ended, or takes too long.
        """
        assert self._process.stdin is not None
        line = json.dumps({"prompts": prompts, "max_tokens": max_tokens, "seed": seed}) + "\n"
        try:
            self._process.stdin.write(line.encode())
        except BrokenPipeError:
            raise self._failed("has ended") from None
        return [Answer(**answer) for answer in self._read(answer_seconds(prompts, max_tokens))]

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, seconds: float) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            raise self._failed(f"did not answer within {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._failed("has ended")
        return json.loads(line)

    def _failed(self, what: str) -> PeerError:
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return PeerError(f"{self.arm.name} {what}: {said[-1] if said else 'no message'} (log: {self._log})")
