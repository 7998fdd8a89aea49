"""Chat templates: from a list of messages to the prompt a chat model was trained on.

A model in Hugging Face layout carries its template, in Jinja, as `chat_template.jinja` or inside
`tokenizer_config.json`. Templates are code from whoever made the model, so they run in Jinja's sandbox, within bounds
of time and memory (`client.rendering`). Their environment is the one that Transformers gives them
(`client.template_process`), and the special tokens by name. Messages reach the template as they do there: without
keys whose value is None (as in ``"content": None`` beside tool calls), and with an assistant's reasoning under each
name that templates read.

    template = ChatTemplate.from_directory("models/smollm2-135m")
    client.chat([{"role": "user", "content": "Hi"}], template=template)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from client.errors import InvalidRequest
from client.rendering import TemplateFault, compile_template, render_template

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
        InvalidRequest: a template is not valid Jinja, or takes more time or memory than templates do.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, Any] | None = None, *, tool_use: str | None = None
    ) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self._with_tools = source if tool_use is None else tool_use
        for each in {source, self._with_tools}:
            _check(each)

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
            messages: the conversation, of JSON values; each message has `role` and usually `content`. A key whose
                value is None counts as absent.
            add_generation_prompt: end with what opens the assistant's turn, so that the model answers.
            tools: JSON schemas of functions the model may call, for templates that know them.
            variables: anything else that the template reads, such as ``enable_thinking``.

        Raises:
            InvalidRequest: the template refuses the messages, in its own words, fails on them, or takes more time or
                memory than templates do.
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
        context["add_generation_prompt"] = add_generation_prompt
        try:
            return render_template(self.source if tools is None else self._with_tools, context)
        except (TemplateFault, TypeError, ValueError, RecursionError) as error:
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


def _check(source: str) -> None:
    try:
        compile_template(source)
    except TemplateFault as fault:
        place = f"line {fault.line}: " if fault.line else ""
        raise InvalidRequest(
            f"the chat template is not valid Jinja: {place}{fault}", field="template"
        ) from None


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
