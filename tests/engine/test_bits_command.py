"""`python -m tests.bits` in small: nothing differs on a tiny target, and a kernel chosen by the step is seen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from build.compile import compile_engine
from deployments.spec import load_spec
from engine.attention_kernels import KernelName
from engine.compiled_runner import CompiledRunner
from engine.runner import SequenceInput
from tests.bits import __main__ as command_line
from tests.bits.ways import WAYS, Ways
from tests.engine.driving import prompt_of
from tests.tiny import KERNELS, MAX_LENGTH, NUM_BLOCKS, TinyTargets

SPEC = "name: x\ntarget: {model: tiny}\nengine: {max_sequence_length: 256}\n"
LENGTH = 24
PROMPTS = [prompt_of(length, seed) for seed, length in enumerate((40, 35))]


class Switching:
    """A runner whose kernel is another one for some steps: the last bit of a logit says so."""

    def __init__(self, runner: CompiledRunner, way: str) -> None:
        self._runner, self._way = runner, way

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        logits = self._runner.forward(batch)
        item = batch[0]
        prompts = sum(each.is_prompt for each in batch)
        kind = {
            "chain": len(batch) == 1 and len(item.tokens) > 1 and item.parents is None and not prompts,
            "tree": item.parents is not None,
            "batch": len(batch) > 1 and not prompts,
            "beside a prompt": 0 < prompts < len(batch),
            "prompts together": 1 < len(batch) == prompts,
            "after reuse": len(batch) == 1
            and item.is_prompt
            and item.blocks != range(item.blocks[0], item.blocks[-1] + 1),
        }
        if kind[self._way]:
            logits[0, 0] = np.nextafter(logits[0, 0], np.float32(np.inf))
        return logits


def ways(runner: Any) -> Ways:
    longest = 64
    assert Ways.blocks(longest, runner.block_size) <= NUM_BLOCKS
    return Ways(runner, longest, LENGTH)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_differs(kernel: KernelName, tiny_targets: TinyTargets) -> None:
    command = ways(tiny_targets.runner("llama", "int8", kernel))
    answers = command.answers(PROMPTS)
    assert [len(answer.hashes) for answer in answers] == [LENGTH] * len(PROMPTS)
    assert command.differing(answers) == {way: [] for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_a_kernel_that_is_chosen_by_the_step_is_seen(way: str, tiny_targets: TinyTargets) -> None:
    command = ways(Switching(tiny_targets.runner("llama", "int8"), way))
    differing = command.differing(command.answers(PROMPTS))
    assert {found for found, rows in differing.items() if rows} == {way}


@pytest.mark.parametrize(
    ("arguments", "built", "told"),
    [
        (["nothing.yaml"], False, "error: nothing.yaml"),
        (["spec.yaml"], False, "holds no compiled engine"),
        (["spec.yaml", "--threads", "0"], True, "--threads: 0 is not 1 or more"),
        (["spec.yaml", "--count", "-1"], True, "--count: -1 is not 1 or more"),
        (["spec.yaml", "--prompts", "nothing.jsonl"], True, "nothing.jsonl"),
        (
            ["spec.yaml"],
            True,
            "prompts of 1024 tokens and answers of 64 are 1088; the engine was compiled for 256",
        ),
    ],
)
def test_what_cannot_be_computed_is_a_line_and_status_2(
    arguments: list[str],
    built: bool,
    told: str,
    tiny_targets: TinyTargets,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").symlink_to(tiny_targets.source("llama"))
    Path("spec.yaml").write_text(SPEC)
    Path("prompts.jsonl").write_text('{"text": "asked"}\n')
    if built:
        directory = load_spec(Path("spec.yaml")).engine_directory
        compile_engine(Path("tiny"), directory, precision="int8", max_sequence_length=MAX_LENGTH)
    monkeypatch.setattr(sys, "argv", ["bits", "--prompts", "prompts.jsonl", *arguments])
    try:
        status = command_line.main()
    except SystemExit as left:
        status = int(str(left.code))
    assert status == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last and told in last
