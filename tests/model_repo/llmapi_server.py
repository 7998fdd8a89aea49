"""The kit's LLM API repository on a real Triton, with a stand-in for TensorRT-LLM beside its `llmapi` model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from build.trtllm.repository.assemble import assemble_trtllm_repository
from build.trtllm.support.matrix import resolve
from deploy.triton import TritonServer
from deployments.spec import DeploymentSpec
from tests.end_to_end.deployment import running
from tests.end_to_end.tiny_tokenizers import FAMILY, write_tokenizer
from tests.ports import free_ports

OUTPUT = f"the draft 世界 proposes, {FAMILY} the target verifies; Ça va? the draft 世界 proposes, 안녕하세요 naïve. "
BEGIN = "<|im_start|>"
_STAND_IN = Path(__file__).parent / "stand_in" / "tensorrt_llm"


@dataclass(frozen=True)
class LlmApiServer:
    """A running server, and the directory of its model."""

    server: TritonServer
    model: Path
    repository: Path

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.server.grpc_port}"

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.server.http_port}"

    def text(self, count: int, after: str = "") -> str:
        """What the first `count` output tokens say, and the prompt if it precedes them."""
        tokenizer = Tokenizer.from_file(str(self.model / "tokenizer.json"))
        prompt = tokenizer.encode(after, add_special_tokens=False).ids
        return str(tokenizer.decode(prompt + self.tokens(count)))

    def tokens(self, count: int) -> list[int]:
        """The first `count` output tokens."""
        tokenizer = Tokenizer.from_file(str(self.model / "tokenizer.json"))
        script: list[int] = tokenizer.encode(OUTPUT, add_special_tokens=False).ids
        return (script * (count // len(script) + 1))[:count]

    @property
    def log(self) -> str:
        """What the server has written."""
        assert self.server.log is not None
        return self.server.log.read_text(encoding="utf-8")

    def journal(self) -> list[dict[str, Any]]:
        """What the stand-in has noted."""
        path = self.model / "journal.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


@contextmanager
def serving_llm_api(
    folder: Path, speculation: dict[str, Any], *, tokenizer: str = "byte-level", reports: bool = False
) -> Iterator[LlmApiServer]:
    """Assemble the repository of a deployment on the LLM API, serve it, and stop it again."""
    repository, model = assemble_llm_api(folder, speculation, tokenizer)
    if reports:
        (model / "reports_acceptance").touch()
    http, grpc, metrics = free_ports(3)
    server = TritonServer(
        repository, http_port=http, grpc_port=grpc, metrics_port=metrics, log=folder / "triton.log"
    )
    with running(server):
        yield LlmApiServer(server, model, repository)


def assemble_llm_api(
    folder: Path, speculation: dict[str, Any], tokenizer: str = "byte-level"
) -> tuple[Path, Path]:
    """The repository of such a deployment, the stand-in within, and the directory of its model."""
    model = write_tokenizer(folder / "target", tokenizer)
    _begin_texts(model / "tokenizer.json")
    (model / "output.txt").write_text(OUTPUT, encoding="utf-8")
    spec = DeploymentSpec.model_validate(
        {
            "name": "tiny-llm-api",
            "target": {"model": model},
            "engine": {"kind": "tensorrt_llm", "line": "A", "runtime": "llm_api", "max_batch_size": 8},
            "speculation": speculation,
        }
    )
    repository = assemble_trtllm_repository(resolve(spec), folder / "repository")
    shutil.copytree(_STAND_IN, repository / "tensorrt_llm" / "1" / "tensorrt_llm")
    return repository, model


def _begin_texts(path: Path) -> None:
    """Let the tokenizer put a token before every text, as Llama's does."""
    tokenizer = Tokenizer.from_file(str(path))
    begin = (BEGIN, tokenizer.token_to_id(BEGIN))
    tokenizer.post_processor = TemplateProcessing(single=f"{BEGIN} $A", pair=None, special_tokens=[begin])
    tokenizer.save(str(path))
