"""A spec that somebody else wrote is refused in a line, and gives no orders to a terminal or a shell."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from build.plan.run import script
from build.plan.runners import LocalRunner
from build.plan.steps import Step
from cli.common import console
from cli.main import app
from deployments.printable import one_line, visible
from deployments.spec import SpecError, load_spec

HOSTILE = {
    "a newline in an image's name": "{name: a, target: {model: b}, "
    'engine: {kind: tensorrt_llm, images: {triton: "x\\ntouch y"}}}',
    "a terminal's escape": '{name: a, target: {model: "b\\e[2J"}}',
    "an escape in a key": '{name: a, target: {model: b}, "\\e[2J": 1}',
    "another line end": '{name: a, target: {model: "b\\u2028c"}}',
    "depth": "[" * 2000,
    "depth that ends": "[" * 2000 + "]" * 2000,
    "references to references": "x: &a0 [1, 1]\n"
    + "\n".join(f"y{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(30)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_it_is_refused_in_a_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(content)
    with pytest.raises(SpecError) as refusal:
        load_spec(path)
    assert visible(str(refusal.value)) == str(refusal.value)
    assert len(str(refusal.value)) < 20_000
    result = CliRunner().invoke(app, ["build", str(path), "--dry-run"])
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_what_is_printed_gives_a_terminal_no_orders() -> None:
    with console.capture() as captured:
        console.print("a model says \x1b]0;title and \x9b2J", markup=False)
    assert captured.get() == "a model says \\x1b]0;title and \\x9b2J\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\x0b"])
def test_a_comment_of_a_script_is_one_line(end: str) -> None:
    text = script([Step("step", ("true",), image=f"image{end}touch pwned")], LocalRunner())
    assert text.splitlines()[0].endswith("touch pwned)")
    assert one_line(text.splitlines()[0]) == text.splitlines()[0]
