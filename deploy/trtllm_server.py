"""Serves a TensorRT-LLM repository: here, where NVIDIA's `tritonserver` is, or in a container by Docker Compose.

Example::

    if tensorrt_llm_triton() is not None:
        with TensorRtLlmServer(launch, log=Path("runs/triton.log")) as server:
            server.wait_until_ready(START_SECONDS)
            server.wait()
    else:
        print(compose_command(Path("deployments/llama3-8b-eagle3-trtllm.yaml"), "line-a").shell())
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deploy.place import Place
from deploy.server import ServerProcess
from deploy.trtllm_launch import Launch, LaunchCommand, launch_command

START_SECONDS = 1800.0
"""Large weights are read for minutes."""

_INSTALLED = Path("/opt/tritonserver/bin/tritonserver")


class TensorRtLlmServer(ServerProcess):
    """The server and, with several ranks, `mpirun` above it."""

    def __init__(self, launch: Launch, *, log: Path | None = None) -> None:
        """Prepare to start it; `log` gets the output of all ranks."""
        super().__init__(
            host=launch.host,
            http_port=launch.http_port,
            grpc_port=launch.grpc_port,
            metrics_port=launch.metrics_port,
            log=log,
            stop_seconds=launch.stop_seconds,
        )
        self._launch = launch

    def _command(self, place: Place) -> tuple[Sequence[str], Mapping[str, str]]:
        command = launch_command(replace(self._launch, region_prefix=f"{place.name}_"))
        return command.arguments, {**os.environ, **command.environment}


def tensorrt_llm_triton() -> str | None:
    """NVIDIA's `tritonserver`, if it is installed here, as it is in the containers."""
    found = shutil.which("tritonserver")
    return found or (str(_INSTALLED) if _INSTALLED.is_file() else None)


def compose_command(spec: Path, kind: str) -> LaunchCommand:
    """The command that serves a spec in a container of a kind (`line-a`, `line-b`, `vllm`), with what belongs to it."""
    settings = f"deploy/compose/{kind}.env"
    return LaunchCommand(
        ("docker", "compose", "--env-file", settings, "up", "--wait", "triton", "front"),
        {"DRAFTHOUSE_SPEC": spec.as_posix()},
    )
