"""The kit's repository for engines on a real Triton, with a stand-in for NVIDIA's C++ backend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from build.trtllm.cells import resolve
from build.trtllm.repository import assemble_trtllm_repository
from deploy.server import free_ports
from deploy.triton import TritonServer
from deployments.spec import DeploymentSpec
from tests.end_to_end.tiny_tokenizers import END_ID, write_tokenizer
from tests.model_repo.llmapi_server import OUTPUT

VOCABULARY = 600
OTHER_END_ID = 1
_STAND_IN = Path(__file__).parent / "stand_in" / "backend" / "model.py"


@dataclass(frozen=True)
class EngineServer:
    """A running server, and where its parts lie."""

    server: TritonServer
    tokenizer: Tokenizer
    repository: Path

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.server.grpc_port}"

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.server.http_port}"

    def tokens(self, count: int) -> list[int]:
        """The first so many output tokens."""
        script: list[int] = self.tokenizer.encode(OUTPUT, add_special_tokens=False).ids
        return (script * (count // len(script) + 1))[:count]

    def text(self, count: int, after: str = "") -> str:
        """What so many output tokens say, and the prompt if it precedes them."""
        prompt = self.tokenizer.encode(after, add_special_tokens=False).ids
        return str(self.tokenizer.decode(prompt + self.tokens(count)))

    def journal(self, model: str = "tensorrt_llm") -> list[dict[str, Any]]:
        """What the stand-in has noted."""
        path = self.repository / model / "1" / "journal.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


@contextmanager
def serving_engines(
    folder: Path, speculation: dict[str, Any], *, tokenizer: str = "byte-fallback"
) -> Iterator[EngineServer]:
    """Assemble the repository of a deployment on engines, serve it, and stop it again."""
    model = write_tokenizer(folder / "target", tokenizer)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [END_ID, OTHER_END_ID]}))
    http, grpc, metrics = free_ports(3)
    spec = DeploymentSpec.model_validate(
        {
            "name": "tiny-engines",
            "target": {"model": model},
            "engine": {
                "kind": "tensorrt_llm", "line": "A", "runtime": "engines", "max_batch_size": 8,
                "workspace": folder / "workspace",
            },
            "speculation": speculation,
        }
    )  # fmt: skip
    resolved = resolve(spec)
    resolved.target_engine.mkdir(parents=True)
    (resolved.target_engine / "config.json").write_text(
        json.dumps({"pretrained_config": {"vocab_size": VOCABULARY}})
    )
    repository = assemble_trtllm_repository(resolved, folder / "repository")
    for path in repository.glob("tensorrt_llm*/config.pbtxt"):
        text = path.read_text(encoding="utf-8")
        if 'backend: "tensorrtllm"' in text:
            path.write_text(text.replace('backend: "tensorrtllm"', 'backend: "python"'), encoding="utf-8")
            shutil.copy(_STAND_IN, path.parent / "1")
            shutil.copy(model / "tokenizer.json", path.parent / "1")
            (path.parent / "1" / "output.txt").write_text(OUTPUT, encoding="utf-8")
    server = TritonServer(
        repository, http_port=http, grpc_port=grpc, metrics_port=metrics, log=folder / "triton.log"
    )
    with server:
        server.wait_until_ready()
        yield EngineServer(server, Tokenizer.from_file(str(model / "tokenizer.json")), repository)
