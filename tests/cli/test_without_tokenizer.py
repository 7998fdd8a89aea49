"""A model whose tokenizer is missing or damaged is told in a line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from engine.serving.text import TextCodec
from tests.build.trtllm.checkpoints import checkpoint

_ENGINES = {"embedded": "{kind: embedded}", "tensorrt_llm": "{kind: tensorrt_llm, line: A, runtime: engines}"}


@pytest.mark.parametrize("content", [None, "{", "[" * 100_000])
@pytest.mark.parametrize("kind", _ENGINES)
def test_verify_ends_with_two(
    kind: str, content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = checkpoint(Path("target")) / "tokenizer.json"
    tokenizer.unlink()
    if content is not None:
        tokenizer.write_text(content)
    Path("spec.yaml").write_text(f"name: x\ntarget: {{model: target}}\nengine: {_ENGINES[kind]}\n")
    result = CliRunner().invoke(app, ["verify", "--quick", "spec.yaml"])
    assert (result.exit_code, type(result.exception)) == (2, SystemExit), result.output
    assert result.output.startswith("error: ")
    with pytest.raises(OSError, match=r"the tokenizer target/tokenizer.json cannot be read: "):
        TextCodec(Path("target"))
