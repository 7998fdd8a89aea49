"""`drafthouse serve` for TensorRT-LLM, with stand-ins for the programs that NVIDIA's containers have.

The one for `tritonserver` writes its arguments down and answers on the ports that it is told, or fails as real ones do.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from tests.build.trtllm.checkpoints import eagle3_models
from tests.ports import free_ports

Monkey: TypeAlias = pytest.MonkeyPatch
ROOT = Path(__file__).parents[2]
EAGLE3 = ROOT / "deployments" / "llama3-8b-eagle3-trtllm.yaml"
_TRITON = f"""#!{sys.executable}
import http.server, json, os, sys, threading
json.dump(sys.argv[1:], open("arguments.json", "w"))
if os.environ.get("FAIL"):
    print("E1121 model_lifecycle.cc:654] failed to load: ValueError: Invalid decoding type: Eagle3")
    sys.exit(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
given = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
for name in ("metrics-port", "http-port"):
    server = http.server.ThreadingHTTPServer((given["http-address"], int(given[name])), Handler)
    threading.Thread(target=server.serve_forever, daemon=name != "http-port").start()
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: Monkey) -> Path:
    """The only directory on PATH; the working directory is empty, and children find this checkout's modules."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return folder


def install(folder: Path, name: str, text: str) -> None:
    program = folder / name
    program.write_text(text)
    program.chmod(0o755)


def spec(tmp_path: Path) -> Path:
    """The example on free ports, with small models."""
    eagle3_models(tmp_path / "models")
    content = yaml.safe_load(EAGLE3.read_text())
    http, grpc, metrics = free_ports(3)
    content["serving"] = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_interrupted(number: signal.Signals, tmp_path: Path, programs: Path) -> None:
    install(programs, "tritonserver", _TRITON)
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve", str(spec(tmp_path))],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        told = ""
        while "Triton serves" not in told:
            line = process.stdout.readline()
            assert line, told
            told += line
        assert "convert-eagle3: done" in told and "collect: done" in told
        arguments = json.loads((tmp_path / "arguments.json").read_text())
        assert "--model-repository=runs/model_repo/llama3-8b-eagle3-trtllm" in arguments
        assert (tmp_path / "runs/model_repo/llama3-8b-eagle3-trtllm/tensorrt_llm/1/model.yaml").is_file()
        process.send_signal(number)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.stdout.close()
    http = next(word for word in arguments if word.startswith("--http-port=")).split("=")[1]
    listening = Path("/proc/net/tcp").read_text()
    assert f":{int(http):04X} 00000000:0000 0A" not in listening


def test_a_server_that_does_not_start_is_explained(
    tmp_path: Path, programs: Path, monkeypatch: Monkey
) -> None:
    install(programs, "tritonserver", _TRITON)
    monkeypatch.setenv("FAIL", "1")
    result = CliRunner().invoke(app, ["serve", str(spec(tmp_path))])
    told = " ".join(result.output.split())
    assert result.exit_code == 2
    assert "tritonserver stopped while starting" in told
    assert "spelt for release line B" in told and "Set engine.line to A" in told


def test_elsewhere_its_container_is_started(tmp_path: Path, programs: Path) -> None:
    install(programs, "docker", '#!/bin/sh\necho "$DRAFTHOUSE_SPEC $*" > docker.log\n')
    result = CliRunner().invoke(app, ["serve", str(spec(tmp_path))])
    assert result.exit_code == 0, result.output
    asked = Path("docker.log").read_text()
    assert (
        asked == f"{tmp_path}/spec.yaml compose --env-file deploy/compose/line-a.env up --wait triton front\n"
    )


def test_without_either_the_image_is_named(tmp_path: Path, programs: Path) -> None:
    result = CliRunner().invoke(app, ["serve", str(spec(tmp_path))])
    assert result.exit_code == 2
    assert "run this inside nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3" in " ".join(
        result.output.split()
    )
