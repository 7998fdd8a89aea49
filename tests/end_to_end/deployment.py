"""A deployment of a tiny random model behind a real Triton server, and what tests look at from outside."""

from __future__ import annotations

import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from build.compile import compile_engine
from build.drafters import compile_speculator
from build.repository import assemble_repository
from build.targets.architecture import Architecture
from deploy.server import ServerProcess
from deploy.triton import TritonServer
from deployments.spec import DeploymentSpec
from engine.planned import drafting
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.end_to_end.tiny_tokenizers import END_ID, write_tokenizer
from tests.ports import free_ports
from tests.revival import REVIVALS

VOCABULARY = 600
MAX_BATCH_SIZE = 8
MAX_QUEUE_SIZE = 6
MAX_SEQUENCE_LENGTH = 32768  # long enough that nobody waits for the end of a full-length output
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


@dataclass(frozen=True)
class Deployment:
    """A running server and where its parts lie."""

    server: TritonServer
    spec: DeploymentSpec
    target: Path
    engine: Path
    repository: Path
    log: Path

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.server.grpc_port}"

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.server.http_port}"

    def metrics(self, model: str = "tensorrt_llm") -> dict[str, float]:
        """The metrics of a model that the kit serves: `name`, or `name/value` for those with one label more."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.server.metrics_port}/metrics", timeout=60
        ) as answer:
            samples = (_SAMPLE.match(line) for line in answer.read().decode().splitlines())
        found = {}
        for name, text, value in (sample.groups() for sample in samples if sample):
            labels = dict(part.split("=") for part in (text or "").split(",") if "=" in part)
            labels.pop("version", None)
            if labels.pop("model", None) == f'"{model}"':
                found["/".join([name, *(label.strip('"') for label in labels.values())])] = float(value)
        return found

    def running(self) -> int:
        """Requests in the engine, waiting ones included."""
        return int(self.metrics()["nv_trt_llm_request_metrics/active"])

    def used_blocks(self) -> int:
        return int(self.metrics()["nv_trt_llm_kv_cache_block_metrics/used"])

    def is_idle(self, model: str = "tensorrt_llm") -> bool:
        """Nothing runs and every block of the KV cache is free."""
        metrics = self.metrics(model)
        blocks = "nv_trt_llm_kv_cache_block_metrics"
        return (
            metrics["nv_trt_llm_request_metrics/active"] == 0
            and metrics[f"{blocks}/free"] == metrics[f"{blocks}/max"]
        )


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Return once the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds:g} s still not: {what}"
        time.sleep(0.01)


@contextmanager
def running(server: ServerProcess) -> Iterator[None]:
    """Start a server, and kill it in the end: a stop in order waits for idle connections, and has tests of its own."""

    def start() -> None:
        server.kill()
        server.start()
        server.wait_until_ready()

    try:
        start()
        with REVIVALS.of(server.log, server.grpc, start) if server.log else nullcontext():
            yield
    finally:
        server.kill()


@contextmanager
def deployed(
    folder: Path,
    tokenizer: str,
    *,
    speculation: Mapping[str, Any] = MappingProxyType({"method": "anpd"}),
    more_bls: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    stop_by_id: bool = False,
    **engine: Any,
) -> Iterator[Deployment]:
    """Compile a tiny model with that tokenizer, assemble its repository, serve it, and stop it again.

    Args:
        folder: for all its files.
        tokenizer: one of `TOKENIZER_NAMES`.
        speculation: the spec's section; a draft model is the target itself.
        more_bls: copies of `tensorrt_llm_bls` with other parameters, by name; an empty one is taken out.
        stop_by_id: of the spec's serving.
        engine: the spec's section.
    """
    target = write_target(folder / "target", tokenizer)
    http, grpc, metrics = free_ports(3)
    limits = {
        "precision": "fp32",
        "max_batch_size": MAX_BATCH_SIZE,
        "max_queue_size": MAX_QUEUE_SIZE,
        "max_sequence_length": MAX_SEQUENCE_LENGTH,
        "threads": 1,
    }
    spec = DeploymentSpec.model_validate(
        {
            "name": "tiny",
            "target": {"model": target},
            "engine": {**limits, **engine},
            "speculation": {**speculation, **({"model": target} if "precision" in speculation else {})},
            "serving": {
                "http_port": http,
                "grpc_port": grpc,
                "metrics_port": metrics,
                "stop_by_id": stop_by_id,
            },
        }
    )
    engine_directory, log = folder / "engine", folder / "triton.log"
    length = spec.embedded.max_sequence_length
    compile_engine(target, engine_directory, precision=spec.embedded.precision, max_sequence_length=length)
    for each in drafting(spec):
        compile_speculator(
            each.speculation,
            engine_directory.with_name(each.speculator_directory.name),
            target=target,
            precision=each.speculator_precision,
            max_sequence_length=length,
        )
    repository = assemble_repository(spec, engine_directory, folder / "repository")
    for name, changes in more_bls.items():
        _copy_bls(repository, name, changes)
    server = TritonServer(repository, http_port=http, grpc_port=grpc, metrics_port=metrics, log=log)
    with running(server):
        yield Deployment(server, spec, target, engine_directory, repository, log)


def _copy_bls(repository: Path, name: str, changes: Mapping[str, str]) -> None:
    shutil.copytree(repository / "tensorrt_llm_bls", repository / name)
    path = repository / name / "config.pbtxt"
    config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    config.name = name
    for key, value in changes.items():
        config.parameters[key].string_value = value
    path.write_text(text_format.MessageToString(config), encoding="utf-8")


def write_target(directory: Path, tokenizer: str, **changes: Any) -> Path:
    """A random Llama in Hugging Face layout whose end token is the tokenizer's."""
    shape: Mapping[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": MAX_SEQUENCE_LENGTH}
    config = tiny_config("llama", **{"head_dim": 32, "eos_token_id": END_ID, **shape, **changes})
    weights = random_weights(Architecture.from_config(config), seed=5)
    for name in weights:
        if "o_proj" in name:  # little attention: the output falls into loops, which drafts then follow
            weights[name] *= 0.05
    write_huggingface(directory, config, weights)
    return write_tokenizer(directory, tokenizer)
