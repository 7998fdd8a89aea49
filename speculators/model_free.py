"""Speculators that need nothing but the tokens: no weights, no hidden states, no engine.

They import numpy alone, so they run wherever tokens are at hand: in the embedded engine, and in a Triton model in
NVIDIA's container.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from speculators.anpd import AnpdSpeculator
from speculators.base import Speculator
from speculators.prompt_lookup import PromptLookupSpeculator
from speculators.suffix_automaton import SuffixSpeculator

MODEL_FREE: Mapping[str, Callable[..., Speculator]] = {
    "anpd": AnpdSpeculator,
    "prompt_lookup": PromptLookupSpeculator,
    "suffix_automaton": SuffixSpeculator,
}
