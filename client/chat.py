"""Chat templates: from a list of messages to the prompt a chat model was trained on.

A model in Hugging Face layout carries its template, in Jinja, as `chat_template.jinja` or inside
`tokenizer_config.json`. Templates are code from whoever made the model, so they run in Jinja's sandbox. The
environment is the one that Transformers gives them (`apply_chat_template`): whitespace control, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that leaves text as it is, the `generation` block,
and the special tokens by name. Messages reach the template as they do there: without keys whose value is None (as in
``"content": None`` beside tool calls), and with an assistant's reasoning under each name that templates read.

    template = ChatTemplate.from_directory("models/smollm2-135m")
    client.chat([{"role": "user", "content": "Hi"}], template=template)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from client.errors import InvalidRequest

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DEFAULT, _TOOL_USE = "default", "tool_use"
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the template.
        special_tokens: what the template knows by name, e.g. ``{"bos_token": "<s>"}``; absent ones are
            undefined in it.
        tool_use: the template that takes its place where tools are given.

    Raises:
        InvalidRequest: a template is not valid Jinja.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, Any] | None = None, *, tool_use: str | None = None
    ) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self._template = _compiled(source)
        self._with_tools = self._template if tool_use is None else _compiled(tool_use)

    @classmethod
    def from_directory(cls, directory: str | Path, name: str | None = None) -> ChatTemplate:
        """The template of the model in `directory`.

        `chat_template.jinja` wins over `tokenizer_config.json`. Where a model has several templates by name
        (a list in `tokenizer_config.json`, or `additional_chat_templates/NAME.jinja`), `name` selects one; without a
        name it is `default`, and `tool_use` for requests with tools.

        Raises:
            InvalidRequest: there is no such directory, or no such template in it.
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise InvalidRequest(
                f"{folder} is not a directory with a model's tokenizer in it", field="template"
            )
        config = _read_json(folder / "tokenizer_config.json")
        templates = _templates(folder, config)
        chosen = name or _DEFAULT
        if chosen not in templates:
            raise InvalidRequest(_missing(folder, chosen, templates), field="template")
        # The older form of tokenizer_config.json leaves special tokens to a file of their own.
        older = {} if "added_tokens_decoder" in config else _read_json(folder / "special_tokens_map.json")
        return cls(
            templates[chosen],
            _special_tokens({**config, **older}),
            tool_use=templates.get(_TOOL_USE) if name is None else None,
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for `messages`.

        Args:
            messages: the conversation; each message has `role` and usually `content`. A key whose value is None
                counts as absent.
            add_generation_prompt: end with what opens the assistant's turn, so that the model answers.
            tools: JSON schemas of functions the model may call, for templates that know them.
            variables: anything else that the template reads, such as ``enable_thinking``.

        Raises:
            InvalidRequest: the template refuses the messages, in its own words, or fails on them.
        """
        for position, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise InvalidRequest(
                    f"messages[{position}] must be a dictionary with a 'role', such as "
                    f'{{"role": "user", "content": "..."}}, not {message!r}',
                    field="messages",
                )
        context = {**self.special_tokens, **variables, "messages": [_plain(message) for message in messages]}
        context.update(tools=tools, documents=variables.get("documents"))
        template = self._template if tools is None else self._with_tools
        try:
            return template.render(context, add_generation_prompt=add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidRequest(
                f"the chat template cannot render the messages: {error}", field="messages"
            ) from error


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """What the template sees of a message."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _compiled(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidRequest(
            f"the chat template is not valid Jinja: line {error.lineno}: {error.message}", field="template"
        ) from None


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks what training learns; here just its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes for HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not valid JSON: {error}", field="template") from None
    if not isinstance(content, dict):
        raise InvalidRequest(f"{path} must hold a JSON object", field="template")
    return content


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """All templates of a model by name."""
    found = config.get("chat_template") or {}
    if isinstance(found, str):
        templates = {_DEFAULT: found}
    elif isinstance(found, list):
        templates = {entry["name"]: entry["template"] for entry in found}
    else:
        templates = dict(found)
    if (single := folder / "chat_template.jinja").is_file():
        templates[_DEFAULT] = single.read_text(encoding="utf-8")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    return templates


def _missing(folder: Path, name: str, templates: Mapping[str, str]) -> str:
    if templates:
        return f"{folder} has no chat template {name!r}, only: {', '.join(sorted(templates))}"
    return (
        f"{folder} has no chat template, neither chat_template.jinja nor one in tokenizer_config.json: "
        "probably not a chat model; send it plain text with generate()"
    )


def _special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens by name; each is a string, or an object with the string as `content`."""
    named = {name: config[name] for name in _TOKEN_NAMES if config.get(name)}
    tokens: dict[str, Any] = {
        name: token["content"] if isinstance(token, dict) else token for name, token in named.items()
    }
    if extra := config.get("additional_special_tokens"):
        tokens["additional_special_tokens"] = [
            token["content"] if isinstance(token, dict) else token for token in extra
        ]
    return tokens
