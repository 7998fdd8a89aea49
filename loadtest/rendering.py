"""Wraps prompts in a model's chat template, once and before anything is timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from client import ChatTemplate
from loadtest.prompts import Prompt


def render(prompts: Sequence[Prompt], template_directory: Path | None) -> tuple[Prompt, ...]:
    """The prompts as single user messages of a chat; unchanged without a directory.

    Raises:
        client.errors.InvalidRequest: there is no chat template in the directory.
    """
    if template_directory is None:
        return tuple(prompts)
    template = ChatTemplate.from_directory(template_directory)
    return tuple(
        dataclasses.replace(prompt, text=template.render([{"role": "user", "content": prompt.text}]))
        for prompt in prompts
    )
