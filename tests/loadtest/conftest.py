"""A real Triton server whose model keeps time instead of computing, with metrics on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tests.client.repository import write_repository
from tests.client.triton_server import Triton, launch
from tests.ports import free_ports


@dataclass
class Server:
    """Where the server is."""

    triton: Triton
    metrics_url: str

    @property
    def grpc(self) -> str:
        return self.triton.grpc

    @property
    def http(self) -> str:
        return self.triton.http


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = start_triton(tmp_path_factory.mktemp("loadtest"))
    try:
        yield started
    finally:
        started.triton.kill()


def _change(model: Path, parameters: Mapping[str, str], salts: bool) -> None:
    path = model / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    if not salts:
        kept = [tensor for tensor in config.input if tensor.name != "cache_salt"]
        del config.input[:]
        config.input.extend(kept)
        for step in config.ensemble_scheduling.step:
            del step.input_map["cache_salt"]
    path.write_text(text_format.MessageToString(config))


def start_triton(
    folder: Path, *, who: Mapping[str, str] = MappingProxyType({}), salts: bool = True, keeps: bool = True
) -> Server:
    """A server with everything in a folder of its own.

    Args:
        folder: for all its files.
        who: parameters of its `ensemble`.
        salts: whether it takes a `cache_salt`.
        keeps: whether it keeps prompts.
    """
    write_repository(folder / "repository", folder / "journal")
    _change(folder / "repository" / "ensemble", who, salts)
    _change(folder / "repository" / "words", {"keeps": str(keeps).lower()}, salts)
    shutil.copy(Path(__file__).parent / "served_model" / "model.py", folder / "repository" / "words" / "1")
    (metrics,) = free_ports(1)
    triton = launch(folder, metrics)
    return Server(triton, f"http://127.0.0.1:{metrics}/metrics")
