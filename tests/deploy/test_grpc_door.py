"""A gRPC server that no longer answers is noticed, though Triton says that it is ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from client import DrafthouseClient
from deploy import watch
from deploy.grpc_door import fault
from deploy.health import main
from deploy.server import ServerDied
from tests.end_to_end.deployment import Deployment, deployed

pytestmark = pytest.mark.triton


def leave(deployment: Deployment) -> None:
    """Go away from a stream that is being written."""
    with DrafthouseClient(deployment.grpc, model="ensemble") as client:
        stream = client.stream("one two three", max_tokens=200)
        next(iter(stream))
        stream.cancel()


def test_streams_that_wait_for_ever_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Triton's own debugging variable holds up its writing of responses, between the two locks that it takes."""
    monkeypatch.setenv("TRITONSERVER_DELAY_GRPC_RESPONSE", "100")
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.2)
    # A model whose response is held up may show no sign of life either; here it is the door that counts.
    monkeypatch.setattr(watch.Watch, "_look_at_signs", lambda self, now: None)
    with deployed(tmp_path, "byte-level") as deployment:
        server = deployment.server
        places = ["--http", server.http, "--grpc", server.grpc, "--metrics", server.metrics, "--seconds", "5"]
        assert fault(server.grpc, 60) is None and main(places) == 0
        for _ in range(50):
            leave(deployment)
            if fault(server.grpc, 2):
                break
        told = fault(server.grpc, 2)
        assert told is not None and "gRPC streams at" in told
        capsys.readouterr()
        assert main(places) == 1 and "gRPC streams at" in capsys.readouterr().out
        with pytest.raises(ServerDied, match=r"gRPC streams at .* are not answered within 2 s"):
            watch.Watch(server, silence_seconds=2).wait()


def test_nobody_there_is_a_fault() -> None:
    told = fault("127.0.0.1:1", 2)
    assert told is not None and "UNAVAILABLE" in told
