"""Serving until the end: what `drafthouse serve` does on every engine."""

import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from cli.common import errors, say
from deploy.server import ServerDied, ServerProcess, TritonError
from deploy.supervise import supervise
from deploy.trtllm_server import compose_command
from deployments.spec import DeploymentSpec


def serve_until_ended(
    run: Callable[[], AbstractContextManager[ServerProcess]], spec: DeploymentSpec, log: Path
) -> None:
    """Serve as the spec's `serving` section says; exit status 1 with what has happened when the server dies."""
    serving = spec.serving
    try:
        supervise(run, on_failure=serving.on_failure, silence_seconds=serving.silence_seconds, tell=_tell)
    except ServerDied as death:
        _tell(f"{death}; its log is {log}")
        raise SystemExit(1) from None


def serve_in_container(spec_path: Path, kind: str, engine: str, image: str) -> None:
    """Start the container of an engine that is not here, by Docker Compose, and return.

    Args:
        spec_path: what it serves.
        kind: file of settings in deploy/compose, without `.env`.
        engine: in words.
        image: where it is installed, for those who have no Docker here.

    Raises:
        TritonError: there is no Docker, or Compose does not start it.
    """
    command = compose_command(spec_path, kind)
    say(f"serve: {command.shell()}")
    try:
        status = subprocess.run(
            command.arguments, env={**os.environ, **command.environment}, check=False
        ).returncode
    except FileNotFoundError:
        raise TritonError(
            f"neither {engine} with its tritonserver nor Docker is installed here; run this inside {image}"
        ) from None
    if status != 0:
        raise TritonError(f"Docker Compose ended with status {status}")
    say("serve: stop it with docker compose down")


def _tell(line: str) -> None:
    errors.print(f"the server has died: {line}", markup=False, soft_wrap=True)
