"""The plan as a whole: what guided decoding adds, and the command that assembles the repository."""

from pathlib import Path

import pytest
import yaml

from build.trtllm.plan import plan_steps
from build.trtllm.repository import __main__ as assemble_command
from build.trtllm.support.matrix import resolve
from deployments.spec import load_spec

EXAMPLE = Path(__file__).parents[3] / "deployments" / "llama3-8b-draft-trtllm.yaml"


@pytest.fixture
def guided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example with guided decoding, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(EXAMPLE.read_text())
    content["engine"]["guided_decoding"] = "xgrammar"
    Path("spec.yaml").write_text(yaml.safe_dump(content))
    return Path("spec.yaml")


def test_engines_with_guided_decoding_get_the_tokenizer_described(guided: Path) -> None:
    resolved = resolve(load_spec(guided))
    *_, describe, last = plan_steps(resolved, guided)
    assert describe.name == "describe-tokenizer"
    assert describe.command[1:3] == (
        "/app/examples/generate_xgrammar_tokenizer_info.py",
        "--model_dir=models/llama3-8b",
    )
    assert describe.outputs[0] in last.inputs and resolved.target_engine in last.inputs
    assert f"--tokenizer-info={describe.outputs[0]}" in last.command


def test_without_it_there_is_nothing_to_describe() -> None:
    assert "describe-tokenizer" not in [
        step.name for step in plan_steps(resolve(load_spec(EXAMPLE)), EXAMPLE)
    ]


def test_the_repository_refers_to_the_description(guided: Path) -> None:
    resolved = resolve(load_spec(guided))
    assemble_command.main(plan_steps(resolved, guided)[-1].command[3:])
    text = Path(resolved.spec.serving.repository, "tensorrt_llm/config.pbtxt").read_text()
    assert "tokenizer-info/xgrammar_tokenizer_info.json" in text
    assert Path(resolved.spec.serving.repository, "tensorrt_llm_draft/config.pbtxt").is_file()


def test_a_spec_that_the_line_refuses_ends_with_two(guided: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guided.write_text(guided.read_text().replace("guided_decoding: xgrammar", "runtime: engines"))
    with pytest.raises(SystemExit) as ended:
        assemble_command.main([str(guided), "--line=B", "--output=out"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not Path("out").exists()
