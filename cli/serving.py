"""Serving until the end: what `drafthouse serve` does on every engine."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from cli.common import errors
from deploy.server import ServerDied, ServerProcess
from deploy.supervise import supervise
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


def _tell(line: str) -> None:
    errors.print(f"the server has died: {line}", markup=False, soft_wrap=True)
