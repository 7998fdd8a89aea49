"""Texts of one's own: from a file to drafts, and what is refused on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from build.drafters import compile_speculator
from build.own_texts import own_texts
from build.targets.architecture import Architecture
from build.targets.errors import TargetError
from deployments.speculation import SuffixAutomaton
from engine.drafters import prepare
from engine.fingerprint import drafter_differences, drafter_identity
from engine.manifest import EngineError, load_manifest
from engine.request import GenerationRequest
from engine.serving.text import TextCodec
from speculators.suffix_automaton import END
from tests.engine.deployed import deployment, opened
from tests.engine.driving import generate, prompt_of, run
from tests.tiny import MAX_LENGTH, TinyTargets

VARIANT, OTHER = "llama", "qwen2"


def compiled(texts: Path, directory: Path, target: Path) -> list[str]:
    lines: list[str] = []
    compile_speculator(
        SuffixAutomaton(method="suffix_automaton", texts=texts),
        directory,
        target=target,
        precision="int8",
        max_sequence_length=MAX_LENGTH,
        report=lines.append,
    )
    return lines


def test_what_stands_in_the_texts_is_drafted_from_the_start_and_changes_no_output(
    tiny_targets: TinyTargets, tmp_path: Path
) -> None:
    target = tiny_targets.source(VARIANT)
    encode = TextCodec(target, add_special_tokens=False).encode
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "so it was said and written"}) + "\n")
    section = {"method": "suffix_automaton", "draft_length": 8, "texts": texts}
    compiled(texts, tmp_path / "texts", target)
    engine, runner = opened(section, tiny_targets, tmp_path / "engine", drafts=tmp_path / "texts")
    requests = [
        GenerationRequest(tuple(encode("so it was said a")), 40),
        GenerationRequest(prompt_of(40), 40),
    ]
    (speculator,) = engine.policy.speculators
    speculator.start(99, requests[0].prompt)
    drafted = speculator.propose([99], [8])[0].tokens
    assert drafted and list(drafted) == encode("so it was said and written")[len(requests[0].prompt) :][:8]
    speculator.finish(99)
    assert [each.tokens for each in run(engine, requests)] == [
        generate(runner, each).tokens for each in requests
    ]
    assert engine.statistics.drafted_tokens > 0


def test_what_is_read_of_a_file(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    target = tiny_targets.source(VARIANT)
    codec = TextCodec(target, add_special_tokens=False)
    entries: list[dict[str, Any]] = [
        {"text": "one two"},
        {"messages": [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "told"}]},
        {"conversations": [{"from": "human", "value": "asked"}, {"from": "gpt", "value": "answered"}]},
        {"messages": [{"role": "user", "content": "asked"}]},
    ]
    lines = tmp_path / "texts.jsonl"
    lines.write_text("\n".join(map(json.dumps, entries)) + "\n\n")
    texts = ["one two", "told", "answered"]
    assert own_texts(lines, target).tolist() == [
        token for text in texts for token in [*codec.encode(text), END]
    ]
    plain = tmp_path / "manual.txt"
    plain.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo")  # as Windows writes it
    assert own_texts(plain, target).tolist() == [*codec.encode("one\n\ntwo"), END]


def test_what_is_odd_in_a_file_is_read_all_the_same(
    tiny_targets: TinyTargets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_targets.source(VARIANT)
    encode = TextCodec(target, add_special_tokens=False).encode
    lines = tmp_path / "texts.jsonl"
    lines.write_bytes(b'\xef\xbb\xbf{"text": "one\\u0000two"}\r\n{"text": "half \\ud800"}\n')
    assert own_texts(lines, target).tolist() == [*encode("one\0two"), END, *encode("half ?"), END]
    monkeypatch.setattr("build.own_texts._PART", 5)  # long texts are tokenised in parts, and stay one
    assert own_texts(lines, target).tolist() == [*encode("one\0two"), END, *encode("half ?"), END]


def test_tokens_that_the_target_does_not_know_are_never_drafted(
    tiny_targets: TinyTargets, tmp_path: Path
) -> None:
    """Tokenizers may have tokens that were added and never trained."""
    target, texts = tmp_path / "target", tmp_path / "texts.txt"
    shutil.copytree(tiny_targets.source(VARIANT), target)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    known = Architecture.from_directory(target).vocab_size
    tokenizer["added_tokens"].append(
        {"id": known, "content": "<new>", "special": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    )
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    texts.write_text("one<new>two")
    encode = TextCodec(target, add_special_tokens=False).encode
    assert encode("<new>") == [known]
    assert own_texts(texts, target).tolist() == [*encode("one"), END, *encode("two"), END]


def test_a_profile_of_other_texts_is_told_apart(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    section = SuffixAutomaton(method="suffix_automaton", texts=texts)
    found = []
    for content in ("so it was", "so it was not"):
        texts.write_text(content)
        found.append(drafter_identity(section))
    assert [line.split()[0] for line in drafter_differences(*found)] == ["speculation.weights_sha256"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "fine"}\n{"text": 3}\n', r"texts\.jsonl:2: expected an object with text, messages or"),
        (b'{"messages": {"role": "assistant"}}', r"texts\.jsonl:1: expected"),
        (b"[" * 100_000, r"texts\.jsonl:1: expected"),
        (b'{"prompt": "asked"}', r"texts\.jsonl:1: expected"),
        (b"\xff\xfe", "cannot be read"),
        (b"\n", "holds no texts of 2 tokens"),
    ],
)
def test_files_that_are_no_texts(
    content: bytes, message: str, tiny_targets: TinyTargets, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_bytes(content)
    with pytest.raises(TargetError, match=message):
        compiled(texts, tmp_path / "out", tiny_targets.source(VARIANT))
    assert not (tmp_path / "out").exists()


def test_texts_are_tokenised_once_and_belong_to_a_target(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    texts, directory, target = tmp_path / "t.txt", tmp_path / "out", tiny_targets.source(VARIANT)
    with pytest.raises(TargetError, match=r"t\.txt is no file"):
        compiled(texts, directory, target)
    texts.write_text("so it was said")
    assert compiled(texts, directory, target)[-1].startswith(f"writing {directory}")
    assert compiled(texts, directory, target) == [f"{directory}: up to date"]
    before = deployment({"method": "suffix_automaton", "texts": texts}, target).speculator_directory
    texts.write_text("so it was not said")
    assert compiled(texts, directory, target)[-1].startswith("writing")
    after = deployment({"method": "suffix_automaton", "texts": texts}, target).speculator_directory
    assert before != after
    section = SuffixAutomaton(method="suffix_automaton", texts=texts)
    for variant, refused in ((VARIANT, False), (OTHER, True)):
        manifest = load_manifest(tiny_targets.engine(variant, "int8"))
        settings: dict[str, Any] = {"target": manifest, "slots": 2, "max_sequence_length": MAX_LENGTH}
        if refused:
            with pytest.raises(EngineError, match="was compiled with the target"):
                prepare(section, directory, **settings)
        else:
            assert prepare(section, directory, **settings)
