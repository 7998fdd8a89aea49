"""Held-out prompts never enter training: exact copies, copies that were touched up, and parts of them are found."""

import json
from pathlib import Path

import pytest

from deployments.places import KIT_PROMPTS
from deployments.training import DataSpec
from speculators.data.errors import DataError
from speculators.data.overlap import HeldOut

LONG = (
    "Maria has twelve boxes of pencils, and each box holds nine pencils; she gives away four of them on Monday and "
    "loses two on Tuesday. How many pencils are left?"
)
SHORT = "Who was the first woman that flew across the ocean?"


@pytest.fixture
def held_out(tmp_path: Path) -> HeldOut:
    path = tmp_path / "prompts.jsonl"
    lines = [{"turns": [LONG, "And on Friday?"]}, {"turns": [SHORT]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return HeldOut([path], hashes=[])


def test_copies_are_found(held_out: HeldOut) -> None:
    assert held_out.overlap(LONG)
    assert held_out.overlap(SHORT)
    assert held_out.overlap("And on Friday?")


def test_case_and_punctuation_do_not_hide_a_copy(held_out: HeldOut) -> None:
    assert held_out.overlap("  " + LONG.upper().replace(",", " -") + "!!")


def test_thirteen_shared_words_are_found_anywhere(held_out: HeldOut) -> None:
    words = LONG.split()
    assert held_out.overlap("Listen: " + " ".join(words[5:18]) + " and so on")
    assert held_out.overlap("Listen: " + " ".join(words[5:17]) + " and so on") is None


def test_a_short_prompt_is_found_inside_another_text(held_out: HeldOut) -> None:
    assert held_out.overlap("Quick question. " + SHORT + " Thanks")


def test_other_texts_pass(held_out: HeldOut) -> None:
    assert held_out.overlap("Maria has twelve apples. How many are left?") is None
    assert held_out.overlap("") is None


def test_a_file_that_is_no_prompt_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match=r"prompts.jsonl:1: expected an object with a list `turns`"):
        HeldOut([path])
    with pytest.raises(DataError, match="cannot be read"):
        HeldOut([tmp_path / "missing.jsonl"])


def test_the_kit_s_prompts_are_never_trained_on_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(json.dumps({"turns": [LONG]}))
    held_out = HeldOut(DataSpec(held_out=("mine.jsonl",)).held_out_files)
    turns = [turn for line in KIT_PROMPTS.read_text().splitlines() for turn in json.loads(line)["turns"]]
    assert len(turns) >= 72
    assert all(held_out.overlap(turn) for turn in [LONG, *turns])
    assert HeldOut(DataSpec().held_out_files).overlap(LONG) is None


def test_hashes_refuse_what_the_prompts_refuse(held_out: HeldOut, tmp_path: Path) -> None:
    held_out.save(tmp_path / "hashes.npy")
    hashed = HeldOut([], hashes=[tmp_path / "hashes.npy"])
    assert hashed.overlap(LONG) and hashed.overlap("Quick question. " + SHORT)
    assert hashed.overlap("Maria has twelve apples. How many are left?") is None
    (tmp_path / "hashes.npy").write_bytes(b"x")
    with pytest.raises(DataError, match="hashes of held-out prompts"):
        HeldOut([], hashes=[tmp_path / "hashes.npy"])


def test_spec_bench_is_refused_without_its_prompts_being_here() -> None:
    shipped = HeldOut([])
    # Its first question, which is MT-bench's first.
    question = (
        "Compose an engaging travel blog post about a recent trip to Hawaii, highlighting cultural experiences and "
        "must-see attractions."
    )
    assert shipped.overlap(question) and shipped.overlap(f"Please. {question} Thank you.")
    assert shipped.overlap("Compose a travel blog post about a trip to Hawaii.") is None
