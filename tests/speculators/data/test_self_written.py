"""The target writes conversations: the same ones after a stop, none that is held out, exactly what it would answer."""

import json
from itertools import count, islice
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.policy import StaticPolicy
from engine.scheduler import EngineConfig
from engine.serving.text import TextCodec
from engine.writing import EngineWriter
from speculators.data.overlap import HeldOut
from speculators.data.prompts import read_prompts
from speculators.data.samples import Sample, SampleFile, read_samples
from speculators.data.self_written import AnswerStyle, Author
from speculators.data.writing import ChatFormat, Messages
from speculators.registry import create
from tests.reference_model import forward
from tests.tiny import TinyTargets

END = 2


def render(messages: Messages) -> str:
    return "".join(f"<|im_start|>{item['content']}<|im_end|>" for item in messages) + "<|im_start|>"


@pytest.fixture
def writer(tiny_targets: TinyTargets) -> EngineWriter:
    limits = EngineConfig(max_batch_size=4, max_sequence_length=256, prefill_chunk=64)
    return EngineWriter(
        Engine(tiny_targets.runner("llama tied", "fp32"), StaticPolicy([create("none")]), limits), [END]
    )


@pytest.fixture
def author(tiny_targets: TinyTargets) -> Author:
    codec = TextCodec(tiny_targets.source("llama tied"))
    chat = ChatFormat(render, codec.encode, codec.decode, END)
    return Author(
        chat, HeldOut([]), AnswerStyle(max_tokens=12, greedy=1.0), max_prompt_tokens=12, max_length=256
    )


def test_answers_are_the_targets_own(writer: EngineWriter, author: Author, tiny_targets: TinyTargets) -> None:
    task = author.answered(5, "test", ["What is a word?", "And a letter?"])
    (sample,) = writer.run([task])
    assert [message["role"] for message in sample.messages] == ["user", "assistant"] * 2
    weights = tiny_targets.weights("llama tied")
    logits = forward(weights.architecture, weights, sample.tokens)
    start, end = sample.written[-1]
    assert end == len(sample.tokens)
    assert logits[start - 1 : end - 1].argmax(-1).tolist() == list(sample.tokens[start:end])


def test_a_stopped_run_goes_on_with_the_same_samples(
    writer: EngineWriter, author: Author, tmp_path: Path
) -> None:
    def write(file: SampleFile, number: int) -> None:
        tasks = (author.self_written(item) for item in count() if item not in file.done)
        missing = number - len(file.done)
        assert len(list(islice(file.append(writer.run(islice(tasks, missing))), missing))) == missing

    write(SampleFile(tmp_path / "whole.jsonl"), 24)
    write(SampleFile(tmp_path / "stopped.jsonl"), 10)
    write(SampleFile(tmp_path / "stopped.jsonl"), 24)
    whole, stopped = (
        {sample.id: sample for sample in read_samples(tmp_path / name)}
        for name in ("whole.jsonl", "stopped.jsonl")
    )
    assert whole == stopped
    assert len(whole) == 24


def test_held_out_prompts_are_refused(writer: EngineWriter, author: Author, tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    path.write_text(json.dumps({"turns": ["What is the name of the tallest tower?"]}) + "\n")
    strict = Author(author.chat, HeldOut([path]), author.style)
    asked = ["what is the name of the tallest tower", "What is the name of the smallest tower?"]
    samples = {
        sample.id: sample for sample in writer.run(strict.answered(n, "x", [t]) for n, t in enumerate(asked))
    }
    assert samples[0] == Sample(0, "x", refused="overlap")
    assert samples[1].refused is None


def test_tasks_that_end_at_once_do_not_end_the_run(writer: EngineWriter, author: Author) -> None:
    turns = ["short"] * 9 + ["This one is long enough"]
    samples = list(writer.run(author.answered(number, "x", [turn]) for number, turn in enumerate(turns)))
    assert [sample.refused for sample in samples] == ["too short"] * 9 + [None]


@pytest.mark.parametrize(
    ("line", "turns"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ("a",)),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ("a",)),
        ({"turns": ["a", "b"]}, ("a", "b")),
        ({"prompt": "a"}, ("a",)),
        ({"instruction": "a", "input": "b"}, ("a\n\nb",)),
        ({"text": "a"}, ("a",)),
    ],
)
def test_prompts_are_read_in_the_shapes_of_data_sets(
    tmp_path: Path, line: dict[str, object], turns: tuple[str, ...]
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(line) + "\n\n")
    (prompt,) = read_prompts(path)
    assert prompt.turns == turns


@pytest.mark.parametrize(
    "content", ["", "\n", '{"x": 1}\n', "{\n", '{"turns": []}\n', '{"prompt": 3}\n', "[1]\n"]
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    from speculators.data.errors import DataError

    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"data.jsonl"):
        read_prompts(path)
