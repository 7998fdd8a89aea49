from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from loadtest.prompts import Prompt, PromptFileError, keep_categories, load, select
from loadtest.settings import BUNDLED_PROMPTS

KINDS = {"chat", "coding", "math", "summarization", "rag", "translation"}


def test_bundled_prompts_are_balanced() -> None:
    counts = Counter(prompt.category for prompt in load(BUNDLED_PROMPTS))
    assert set(counts) == KINDS
    assert min(counts.values()) >= 11


@pytest.mark.parametrize(("category", "fewest", "most"), [("summarization", 200, 500), ("rag", 150, 400)])
def test_bundled_texts_have_length(category: str, fewest: int, most: int) -> None:
    for prompt in load(BUNDLED_PROMPTS):
        if prompt.category == category:
            assert fewest <= len(prompt.text.split()) <= most + 30, prompt.id  # 30: the question itself


def test_bundled_prompts_differ() -> None:
    texts = [prompt.text for prompt in load(BUNDLED_PROMPTS)]
    assert len(set(texts)) == len(texts)


def test_first_turn_of_spec_bench_is_used(tmp_path: Path) -> None:
    lines = [
        {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Shorten it."]},
        {"question_id": 401, "category": "rag", "turns": ["Who?"], "reference": ["Me."]},
    ]
    file = tmp_path / "spec_bench.jsonl"
    file.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    assert load(file) == (Prompt("81", "writing", "Write a poem."), Prompt("401", "rag", "Who?"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ('{"question_id": 2, "turns": ["x"]}', "'category' is missing"),
        ('{"question_id": true, "category": "a", "turns": ["x"]}', "'question_id' must be"),
        ('{"question_id": 2, "category": "", "turns": ["x"]}', "'category' must be a non-empty str"),
        ('{"question_id": 2, "category": "a", "turns": []}', "'turns' must begin"),
        ('{"question_id": 2, "category": "a", "turns": [" "]}', "'turns' must begin"),
        ('{"question_id": 1, "category": "a", "turns": ["x"]}', "occurs a second time"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"question_id": 1, "category": "a", "turns": ["x"]}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(PromptFileError, match=complaint) as caught:
        load(file)
    assert f"{file}:2:" in str(caught.value)


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="cannot read"):
        load(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PromptFileError, match="holds no prompts"):
        load(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(PromptFileError, match="not UTF-8"):
        load(tmp_path / "binary.jsonl")


def prompts(**sizes: int) -> list[Prompt]:
    return [Prompt(f"{kind}{i}", kind, "x") for kind, size in sizes.items() for i in range(size)]


def test_selection_takes_turns() -> None:
    chosen = select(prompts(a=3, b=1, c=2), 7)
    assert [prompt.id for prompt in chosen] == ["a0", "b0", "c0", "a1", "c1", "a2", "a0"]


def test_selection_continues_where_the_last_ended() -> None:
    found = prompts(a=4, b=2)
    assert select(found, 3) + select(found, 5, start=3) == select(found, 8)


def test_selection_of_categories() -> None:
    found = prompts(a=2, b=1)
    assert {prompt.category for prompt in keep_categories(found, ["b"])} == {"b"}
    assert keep_categories(found, []) == tuple(found)
    with pytest.raises(PromptFileError, match=r"category 'z'; there are: a, b"):
        keep_categories(found, ["z"])
