"""Chat templates render as Transformers renders them; the expected texts are written out."""

from __future__ import annotations

import json
import multiprocessing
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from client import ChatTemplate, errors, rendering

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello <b>&amp;</b> 你好"}]


def write(folder: Path, config: dict[str, Any], **files: str) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def test_chatml() -> None:
    assert ChatTemplate(CHATML).render(HELLO) == (
        "<|im_start|>system\nBe helpful<|im_end|>\n"
        "<|im_start|>user\nHello <b>&amp;</b> 你好<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_generation_prompt() -> None:
    assert ChatTemplate(CHATML).render(HELLO, add_generation_prompt=False).endswith("<|im_end|>\n")


def test_whitespace_control_of_blocks() -> None:
    source = (
        "{% for message in messages %}\n    {% if true %}\n[{{ message.content }}]\n    {% endif %}\n"
        "{% endfor %}\n"
    )
    assert ChatTemplate(source).render([{"role": "user", "content": "x"}]) == "[x]\n"


def test_special_tokens_of_every_form(tmp_path: Path) -> None:
    config = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "pad_token": None,
        "additional_special_tokens": ["<a>", {"content": "<b>"}],
        "chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}"
        "{{ additional_special_tokens }}",
    }
    assert ChatTemplate.from_directory(write(tmp_path, config)).render([]) == "<s></s>False['<a>', '<b>']"


@pytest.mark.parametrize(
    ("newer", "expected"), [({}, "<s>map"), ({"added_tokens_decoder": {}}, "config")], ids=["older", "newer"]
)
def test_the_special_tokens_map_speaks_for_the_older_form_alone(
    newer: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    folder = write(
        tmp_path,
        {"eos_token": "config", "chat_template": "{{ bos_token }}{{ eos_token }}", **newer},
        special_tokens_map__json='{"bos_token": "<s>", "eos_token": "map"}',
    )
    assert ChatTemplate.from_directory(folder).render([]) == expected


def test_template_file_wins(tmp_path: Path) -> None:
    folder = write(tmp_path, {"chat_template": "config"}, chat_template__jinja="file")
    assert ChatTemplate.from_directory(folder).render([]) == "file"


def test_templates_by_name(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    folder = write(tmp_path, {"chat_template": named})
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R")
    names = ("default", "tool_use", "rag")
    assert [ChatTemplate.from_directory(folder, name).render([]) for name in names] == ["D", "T", "R"]
    with pytest.raises(errors.InvalidRequest, match="no chat template 'rga', only: default, rag, tool_use"):
        ChatTemplate.from_directory(folder, "rga")


def test_tools_take_the_template_for_tools_unless_one_is_named(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T{{ tools | length }}"}]
    folder = write(tmp_path, {"chat_template": named})
    template = ChatTemplate.from_directory(folder)
    assert template.render(HELLO) == "D"
    assert template.render(HELLO, tools=[{"name": "f"}]) == "T1"
    assert template.render(HELLO, tools=[]) == "T0"
    assert ChatTemplate.from_directory(folder, "default").render(HELLO, tools=[{"name": "f"}]) == "D"
    single = write(tmp_path, {"chat_template": "S"})
    assert ChatTemplate.from_directory(single).render(HELLO, tools=[{"name": "f"}]) == "S"


def test_what_is_none_is_absent() -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.content }}:{{ m.content is defined }};{% endfor %}"
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert ChatTemplate(source).render([calls, {"role": "tool", "content": "x"}]) == (
        "assistant::False;tool:x:True;"
    )


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_found_under_each_name(name: str) -> None:
    source = "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}"
    assert ChatTemplate(source).render([{"role": "assistant", "content": "x", name: "why"}]) == "why|why"


def test_model_without_template(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match="not a chat model") as caught:
        ChatTemplate.from_directory(write(tmp_path, {"bos_token": "<s>"}))
    assert caught.value.field == "template"


def test_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match="not a directory"):
        ChatTemplate.from_directory(tmp_path / "nothing")


def test_template_may_refuse_messages() -> None:
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}ok"
    )
    template = ChatTemplate(source)
    assert template.render(HELLO) == "ok"
    with pytest.raises(errors.InvalidRequest, match="System role not supported") as caught:
        template.render([{"role": "system", "content": "x"}])
    assert caught.value.field == "messages"


def test_date() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }} {{ strftime_now is defined }}")
    assert template.render([]) in {f"{datetime.now().year} True", f"{datetime.now().year - 1} True"}


def test_tools_and_tojson() -> None:
    tools = [{"name": "größe", "parameters": {"b": 1, "a": "<é>"}}]
    assert ChatTemplate("{{ tools | tojson }}").render([], tools=tools) == (
        '[{"name": "größe", "parameters": {"b": 1, "a": "<é>"}}]'
    )
    assert ChatTemplate("{{ tools[0].parameters | tojson(indent=2) }}").render([], tools=tools) == (
        '{\n  "b": 1,\n  "a": "<é>"\n}'
    )
    assert ChatTemplate("{% if not tools %}none{% endif %}").render([]) == "none"


def test_generation_block_and_loop_controls() -> None:
    source = (
        "{% for message in messages %}{% if message.role == 'tool' %}{% continue %}{% endif %}"
        "{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}"
    )
    messages = [
        {"role": "user", "content": "a"},
        {"role": "tool", "content": "b"},
        {"role": "x", "content": "c"},
    ]
    assert ChatTemplate(source).render(messages) == "ac"


def test_variables_reach_the_template() -> None:
    template = ChatTemplate("{% if enable_thinking is defined and not enable_thinking %}quiet{% endif %}")
    assert template.render([], enable_thinking=False) == "quiet"
    assert template.render([]) == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
def test_templates_are_confined(source: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="cannot render"):
        ChatTemplate(source).render(HELLO)


def test_invalid_template_says_where() -> None:
    with pytest.raises(errors.InvalidRequest, match="line 2"):
        ChatTemplate("fine\n{% if %}")


@pytest.mark.parametrize("message", ["hello", {"content": "x"}, {"role": 3}])
def test_messages_must_have_a_role(message: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"messages\[1\] must be a dictionary with a 'role'"):
        ChatTemplate(CHATML).render([*HELLO, message])


HOSTILE = {
    "multiplied text": "{{ 'a' * 2000000000 }}",
    "text that grows": "{% set ns = namespace(t='a' * 9999) %}{% for i in range(99) %}"
    "{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "multiplied list": "{{ ([messages] * 999999999) | length }}",
    "padded text": "{{ ('x' | center(2000000000)) | length }}",
    "formatted text": "{{ '%2000000000d' | format(1) | length }}",
    "indented JSON": "{{ messages | tojson(indent=2000000000) | length }}",
    "a long text": "{% set t = 'a' * 99999 %}{% for i in range(9999) %}{{ t ~ i }}{% endfor %}",
    "orders to a terminal": "{{ raise_exception('\x1b[2J' ~ 'lines\n' * 9999) }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep nesting": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "deep blocks": "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000,
    "a large template": "x" * 2**21,
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_template_without_measure(source: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="the chat template") as caught:
        ChatTemplate(source).render(HELLO)
    told = str(caught.value)
    assert told.isprintable() and len(told) < 500
    assert ChatTemplate(CHATML).render(HELLO).startswith("<|im_start|>system")  # others do not suffer


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ (9 ** 999999) % 7 * (8 ** 99999999) }}",
    ],
    ids=["loops", "folded power", "power"],
)
def test_template_without_end(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.rendering._SECONDS", 0.5)
    with pytest.raises(errors.InvalidRequest, match=r"takes (longer than|more than)|exceeds") as caught:
        ChatTemplate(source).render(HELLO)
    assert len(str(caught.value).splitlines()) == 1
    assert ChatTemplate(CHATML).render(HELLO).startswith("<|im_start|>system")


def test_messages_that_are_not_json() -> None:
    with pytest.raises(errors.InvalidRequest, match="is not a JSON value"):
        ChatTemplate(CHATML).render([{"role": "user", "content": object()}])


def test_children_of_this_process_render_too() -> None:
    template = ChatTemplate(CHATML)
    expected = template.render(HELLO)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(template.render, [HELLO] * 8) == [expected] * 8


def test_an_interrupt_while_the_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(socket.socket):
        def close(self) -> None:
            super().close()
            raise KeyboardInterrupt

    def pair() -> tuple[socket.socket, socket.socket]:
        ours, its = real()
        return ours, Interrupted(its.family, its.type, its.proto, its.detach())

    rendering._RENDERER.end()
    real = socket.socketpair
    with monkeypatch.context() as during:
        during.setattr("client.rendering.socket.socketpair", pair)
        with pytest.raises(KeyboardInterrupt):
            ChatTemplate(CHATML)
    assert ChatTemplate(CHATML).render(HELLO).startswith("<|im_start|>system")


def test_an_interrupt_does_not_end_the_process_of_whoever_goes_on() -> None:
    template = ChatTemplate(CHATML)
    process = rendering._RENDERER._process
    assert process is not None
    for _ in range(20):
        process.send_signal(signal.SIGINT)  # as a terminal does, to all that run in it
        assert template.render(HELLO)
    assert rendering._RENDERER._process is process and process.poll() is None


def test_what_import_ignores_on_the_path_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rendering._RENDERER.end()
    monkeypatch.setattr("sys.path", [*sys.path, tmp_path])
    assert ChatTemplate(CHATML).render(HELLO)


def test_threads_do_not_get_each_others_texts() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    asked = [f"{number} " * 5000 for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert (
            list(pool.map(lambda text: template.render([{"role": "user", "content": text}]), asked)) == asked
        )
