"""Wraps prompts in a model's chat template, once and before anything is timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from client import ChatTemplate
from loadtest.cache import PLACE
from loadtest.prompts import Prompt, PromptFileError


def render(
    prompts: Sequence[Prompt], template_directory: Path | None, *, with_numbers: bool = False
) -> tuple[Prompt, ...]:
    """The prompts as the texts that are sent.

    Args:
        prompts: as they were read.
        template_directory: whose chat template wraps them; None: they are sent as they are.
        with_numbers: leave a place for a number at the beginning (:func:`loadtest.cache.numbered`).

    Raises:
        client.errors.InvalidRequest: a prompt needs a chat template, and there is none in the directory.
        PromptFileError: a prompt cannot be rendered, or the template loses the place.
    """
    template = None
    if template_directory is not None and not all(prompt.is_text for prompt in prompts):
        template = ChatTemplate.from_directory(template_directory)
    return tuple(_rendered(prompt, template, with_numbers) for prompt in prompts)


def _rendered(prompt: Prompt, template: ChatTemplate | None, with_number: bool) -> Prompt:
    text = (_with_place(prompt) if with_number else prompt).rendered(template)
    if with_number and PLACE not in text:
        raise PromptFileError(
            f"prompt {prompt.id}: the chat template does not show its first message, so that no number can make it new "
            "to the server's cache; measure with --cache warm"
        )
    return Prompt(prompt.id, prompt.category, text, is_text=True)


def _with_place(prompt: Prompt) -> Prompt:
    if not prompt.before:
        return dataclasses.replace(prompt, text=f"{PLACE} {prompt.text}")
    first, *others = prompt.before
    said = first["content"]  # a message that only calls tools says nothing
    return dataclasses.replace(
        prompt, before=({**first, "content": f"{PLACE} {said}" if said else PLACE}, *others)
    )
