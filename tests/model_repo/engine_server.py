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

from build.trtllm.engines.commands import sequence_length
from build.trtllm.methods.table import accepts_by_logits, draft_tokens
from build.trtllm.repository.assemble import assemble_trtllm_repository
from build.trtllm.resolved import Resolved
from build.trtllm.support.matrix import resolve
from deploy.triton import TritonServer
from deployments.spec import DeploymentSpec
from tests.end_to_end.deployment import running
from tests.end_to_end.tiny_tokenizers import END_ID, write_tokenizer
from tests.model_repo.llmapi_server import OUTPUT
from tests.ports import free_ports

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
        """The first `count` output tokens."""
        script: list[int] = self.tokenizer.encode(OUTPUT, add_special_tokens=False).ids
        return (script * (count // len(script) + 1))[:count]

    def text(self, count: int, after: str = "") -> str:
        """What the first `count` output tokens say, and the prompt if it precedes them."""
        prompt = self.tokenizer.encode(after, add_special_tokens=False).ids
        return str(self.tokenizer.decode(prompt + self.tokens(count)))

    def journal(self, model: str = "tensorrt_llm") -> list[dict[str, Any]]:
        """What the stand-in has noted."""
        path = self.repository / model / "1" / "journal.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


@contextmanager
def serving_engines(
    folder: Path,
    speculation: dict[str, Any],
    *,
    tokenizer: str = "byte-fallback",
    engine: dict[str, Any] | None = None,
    room: int | None = None,
) -> Iterator[EngineServer]:
    """Assemble the repository of a deployment on engines, serve it, and stop it again.

    Args:
        folder: where everything goes.
        speculation: the spec's section.
        tokenizer: kind of tokenizer.
        engine: more of the spec's engine section.
        room: `--max_seq_len` of the target, if it was not built from the spec.
    """
    model = write_tokenizer(folder / "target", tokenizer)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [END_ID, OTHER_END_ID]}))
    http, grpc, metrics = free_ports(3)
    spec = DeploymentSpec.model_validate(
        {
            "name": "tiny-engines",
            "target": {"model": model},
            "engine": {
                "kind": "tensorrt_llm", "line": "A", "runtime": "engines", "max_batch_size": 8,
                "workspace": folder / "workspace", **(engine or {}),
            },
            "speculation": speculation,
        }
    )  # fmt: skip
    resolved = resolve(spec)
    _write_engine(resolved, "target", resolved.target_engine, room)
    if resolved.draft_engine:
        _write_engine(resolved, "draft", resolved.draft_engine, None)
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
    with running(server):
        yield EngineServer(server, Tokenizer.from_file(str(model / "tokenizer.json")), repository)


def _write_engine(resolved: Resolved, role: str, directory: Path, room: int | None) -> None:
    """An engine's config.json, as trtllm-build leaves it."""
    build = {
        "max_seq_len": room or sequence_length(resolved, role),
        "max_num_tokens": resolved.engine.max_num_tokens,
        "max_draft_len": draft_tokens(resolved.speculation) if role == "target" else 0,
        "gather_generation_logits": accepts_by_logits(resolved),
    }
    directory.mkdir(parents=True)
    content = {"pretrained_config": {"vocab_size": VOCABULARY}, "build_config": build}
    (directory / "config.json").write_text(json.dumps(content), encoding="utf-8")
