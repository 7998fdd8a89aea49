from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from client.errors import InvalidRequest
from deployments.places import KIT_PROMPTS
from loadtest.prompts import Prompt, PromptFileError, keep_categories, load, numbered, render, select

KINDS = {"chat", "coding", "math", "summarization", "rag", "translation"}


def test_bundled_prompts_are_balanced() -> None:
    counts = Counter(prompt.category for prompt in load(KIT_PROMPTS))
    assert set(counts) == KINDS
    assert min(counts.values()) >= 11


@pytest.mark.parametrize(("category", "fewest", "most"), [("summarization", 200, 500), ("rag", 150, 400)])
def test_bundled_texts_have_length(category: str, fewest: int, most: int) -> None:
    for prompt in load(KIT_PROMPTS):
        if prompt.category == category:
            assert fewest <= len(prompt.text.split()) <= most + 30, prompt.id  # 30: the question itself


def test_bundled_prompts_differ() -> None:
    texts = [prompt.text for prompt in load(KIT_PROMPTS)]
    assert len(set(texts)) == len(texts)


def test_first_turn_of_spec_bench_is_used(tmp_path: Path) -> None:
    lines = [
        {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Shorten it."]},
        {"question_id": 401, "category": "rag", "turns": ["Who?"], "reference": ["Me."]},
    ]
    file = tmp_path / "spec_bench.jsonl"
    file.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    assert load(file) == (Prompt("81", "writing", "Write a poem."), Prompt("401", "rag", "Who?"))


SYSTEM = {"role": "system", "content": "Be brief."}
TEXT_PART = {"type": "text", "text": "a"}
ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"text": "Once upon a time"}, Prompt("line-1", "text", "Once upon a time", is_text=True)),
        ({"prompt": "Who?"}, Prompt("line-1", "chat", "Who?")),
        ({"instruction": "Translate.", "input": "Hund"}, Prompt("line-1", "chat", "Translate.\n\nHund")),
        ({"instruction": "Sing.", "input": ""}, Prompt("line-1", "chat", "Sing.")),
        ({"id": "a7", "category": "qa", "prompt": "Who?"}, Prompt("a7", "qa", "Who?")),
        ({"question_id": 81, "turns": ["Who?", "Why?"]}, Prompt("81", "chat", "Who?")),
        ({"messages": [ASKED]}, Prompt("line-1", "chat", "Hi")),
        ({"messages": [SYSTEM, ASKED, ANSWERED]}, Prompt("line-1", "chat", "Hi", (SYSTEM,))),
        (
            {"messages": [SYSTEM, ASKED, ANSWERED, {"role": "user", "content": "And you?"}]},
            Prompt("line-1", "chat", "And you?", (SYSTEM, ASKED, ANSWERED)),
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    }
                ]
            },
            Prompt("line-1", "chat", "ab"),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": None}, TEXT_PART]}]},
            Prompt("line-1", "chat", "a"),
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
            Prompt("line-1", "chat", "Hi"),
        ),
        (
            {
                "conversations": [
                    *({"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}),
                    {"from": "human", "value": "Bye"},
                ]
            },
            Prompt("line-1", "chat", "Bye", (ASKED, ANSWERED)),
        ),
        ({"prompt": "Who?", "text": "gold"}, Prompt("line-1", "chat", "Who?")),
        ({"prompt": [SYSTEM, ASKED], "completion": [ANSWERED]}, Prompt("line-1", "chat", "Hi", (SYSTEM,))),
        ({"id": None, "prompt": "Who?"}, Prompt("line-1", "chat", "Who?")),
    ],
)
def test_shapes_that_files_come_in(tmp_path: Path, entry: dict[str, Any], expected: Prompt) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(entry) + "\n", encoding="utf-8")
    assert load(file) == (expected,)


def test_shapes_may_be_mixed_and_lines_without_id_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"text": "b"}\n{"messages": [{"role": "user", "content": "c"}]}\n')
    assert [(prompt.id, prompt.category) for prompt in load(file)] == [
        ("line-1", "chat"),
        ("line-3", "text"),
        ("line-4", "chat"),
    ]


def test_an_array_of_entries_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    """As ShareGPT's and Alpaca's files are published, and as Windows' editors write."""
    file = tmp_path / "prompts.json"
    entries = [{"instruction": "Sing."}, {"conversations": [{"from": "human", "value": "Hi"}]}]
    for text in (json.dumps(entries), json.dumps(entries, indent=2)):
        file.write_text(text, encoding="utf-8-sig")
        assert load(file) == (Prompt("entry-1", "chat", "Sing."), Prompt("entry-2", "chat", "Hi"))
    file.write_text('\ufeff{"prompt": "a"}\r\n{"prompt": "b\u2028c"}\r\n', encoding="utf-8", newline="")
    assert [prompt.text for prompt in load(file)] == ["a", "b\u2028c"]
    file.write_text('[{"prompt": "a"},\n {"question": "b"}]', encoding="utf-8")
    with pytest.raises(PromptFileError, match=r"prompts.json, entry 2: expected an object with turns"):
        load(file)
    file.write_text('[{"prompt": "a"},\n {"prompt": b}]', encoding="utf-8")
    with pytest.raises(PromptFileError, match=r"not JSON: Expecting value at line 2, column 13"):
        load(file)


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}<assistant>"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def test_what_is_said_gets_the_template_and_what_is_text_does_not(model: Path) -> None:
    said, chat = Prompt("1", "a", "Hi"), Prompt("2", "a", "Bye", (ASKED, ANSWERED))
    text = Prompt("3", "a", "Once", is_text=True)
    assert [prompt.text for prompt in render([said, chat, text], model)] == [
        "<user>Hi</user><assistant>",
        "<user>Hi</user><assistant>Hello!</assistant><user>Bye</user><assistant>",
        "Once",
    ]
    assert [prompt.text for prompt in render([said, text], None)] == ["Hi", "Once"]
    with pytest.raises(
        PromptFileError, match="prompt 2 is a conversation of 3 messages; it needs a chat template"
    ):
        render([chat], None)


def test_texts_need_no_template(tmp_path: Path) -> None:
    """A base model has none."""
    tmp_path.joinpath("tokenizer_config.json").write_text("{}")
    assert render([Prompt("3", "a", "Once", is_text=True)], tmp_path)[0].text == "Once"
    with pytest.raises(InvalidRequest, match="has no chat template"):
        render([Prompt("3", "a", "Once")], tmp_path)


def test_a_number_of_its_own_goes_before_everything_that_the_prompt_says(model: Path) -> None:
    prompts = [
        Prompt("1", "a", " Hi"),
        Prompt("2", "a", "Bye", (SYSTEM, ASKED, ANSWERED)),
        Prompt("3", "a", "Once", is_text=True),
    ]
    rendered = render(prompts, model, with_numbers=True)
    one, other = ([numbered(prompt.text, key) for prompt in rendered] for key in ("a", "b"))
    assert one != other and [numbered(prompt.text, "a") for prompt in rendered] == one
    assert all(re.search(r"^(<user>|<system>|)\[\d{12}\] ", text) for text in one)
    assert list(map(len, one)) == list(map(len, other))
    plain = [re.sub(r"\[\d{12}\] ", "", text, count=1) for text in one]
    assert plain[1:] == [prompt.text for prompt in render(prompts, model)][1:]


def test_a_first_message_without_content_gets_nothing_but_the_number(model: Path) -> None:
    """As of an assistant that only calls tools."""
    calls: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
    rendered = render([Prompt("1", "a", "Bye", (calls, ASKED))], model, with_numbers=True)
    text = numbered(rendered[0].text, "a")
    assert re.fullmatch(r"<assistant>\[\d{12}\]</assistant><user>Hi</user><user>Bye</user><assistant>", text)


def test_a_template_that_hides_the_first_message_takes_no_number(model: Path) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[-1].content }}"}))
    chat = Prompt("2", "a", "Bye", (ASKED, ANSWERED))
    with pytest.raises(PromptFileError, match="prompt 2: the chat template does not show its first message"):
        render([chat], model, with_numbers=True)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object with turns, messages, conversations, prompt, instruction or text"),
        ('{"question": "x"}', "expected an object with turns, messages"),
        ('{"question_id": true, "turns": ["x"]}', "'question_id' must be"),
        ('{"question_id": 2, "category": "", "turns": ["x"]}', "'category' must be a non-empty str"),
        ('{"question_id": 2, "category": "a", "turns": []}', "'turns' must be a non-empty list"),
        ('{"question_id": 2, "category": "a", "turns": [" "]}', r"turns\[0\] must be a non-empty text"),
        ('{"question_id": 1, "category": "a", "turns": ["x"]}', "the id 1 occurs a second time"),
        ('{"text": ""}', "text must be a non-empty text"),
        ('{"prompt": 3}', "prompt must be a non-empty text"),
        ('{"prompt": ["a", "b"]}', r"prompt\[0\] must be an object with 'role' and 'content'"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "'messages' has no message of the user"),
        ('{"messages": ["x"]}', r"messages\[0\] must be an object with 'role' and 'content'"),
        ('{"messages": [{"role": "user", "content": null}]}', r"messages\[0\] must be a non-empty text"),
        (
            '{"conversations": [{"role": "user"}]}',
            r"conversations\[0\] must be an object with 'from' and 'value'",
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}',
            r"messages\[0\] has parts that are no text",
        ),
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
