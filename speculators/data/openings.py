"""Where self-written prompts begin: for each kind of prompt a system prompt and first words of the user's turn.

The words themselves are in `openings.yaml`.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict


class Kind(BaseModel):
    """A kind of prompt.

    Attributes:
        share: its share among all prompts, relative to the others.
        system: what the target is told before it writes the user's turn.
        openings: first words of the turn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float
    system: str
    openings: tuple[str, ...]


class Openings(BaseModel):
    """All words.

    Attributes:
        kinds: by name, those of Spec-Bench that need no text to begin with.
        topics, subjects, places: of news and encyclopedia articles.
        question_words: beginnings of questions about articles.
        german: parts of German sentences, one of each list makes one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: dict[str, Kind]
    topics: tuple[str, ...]
    subjects: tuple[str, ...]
    places: tuple[str, ...]
    question_words: tuple[str, ...]
    german: tuple[tuple[str, ...], ...]


OPENINGS = Openings.model_validate(
    yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
)
