"""ANPD in vLLM drafts what the embedded engine drafts after the same text, whoever's row it is in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.vllm import proposer as module
from engine.vllm.proposer import AnpdProposer
from speculators.anpd import AnpdSpeculator

LONGEST, NGRAM, DRAFT = 48, 3, 4


def proposer(ngram: int = NGRAM) -> AnpdProposer:
    """As vLLM makes it: only what it reads of the configuration is there."""
    return AnpdProposer(
        SimpleNamespace(
            additional_config={"drafthouse": {"ngram": ngram}},
            speculative_config=SimpleNamespace(
                num_speculative_tokens=DRAFT, num_speculative_tokens_per_batch_size=None
            ),
            model_config=SimpleNamespace(max_model_len=LONGEST),
        )
    )


def proposed(drafter: AnpdProposer, texts: list[list[int]], emitted: list[list[int]]) -> list[list[int]]:
    table = np.zeros((len(texts), LONGEST), np.int32)
    for row, text in enumerate(texts):
        table[row, : len(text)] = text
    return drafter.propose(emitted, np.array([len(text) for text in texts]), table)


def expected(text: list[int], ngram: int = NGRAM) -> list[int]:
    speculator = AnpdSpeculator(ngram, DRAFT)
    speculator.start(0, text)
    room = max(0, min(DRAFT, LONGEST - len(text) - 1))
    return list(speculator.propose([0], [room])[0].tokens)


TEXTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=4)


@given(TEXTS, st.data())
def test_drafts_are_those_of_the_embedded_engine_while_rows_come_go_and_move(
    texts: list[list[int]], data: Any
) -> None:
    drafter = proposer()
    for _ in range(4):
        assert proposed(drafter, texts, [[text[-1]] for text in texts]) == [expected(text) for text in texts]
        texts = data.draw(st.permutations(texts))
        grown = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
        texts = [text + grown[: 1 + row % len(grown)] for row, text in enumerate(texts)]
        if data.draw(st.booleans()):
            texts = [*texts[1:], data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=10))]


def test_a_row_that_still_reads_its_prompt_gets_no_draft() -> None:
    text = [1, 2, 3, 1, 2]
    assert proposed(proposer(), [text, text], [[], [2]]) == [[], expected(text)] != [[], []]


def test_rows_that_stay_are_compared_with_their_own_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those behind rows that emit nothing."""
    compared: list[int] = []
    begins = module._Text.begins

    def counted(text: Any, tokens: Any) -> bool:
        compared.append(len(text.tokens))
        return begins(text, tokens)

    monkeypatch.setattr(module._Text, "begins", counted)
    drafter = proposer()
    texts = [[row, 1, 2, 1] for row in range(6)]
    emitted = [[text[-1]] if row not in (0, 3) else [] for row, text in enumerate(texts)]
    for _ in range(3):
        proposed(drafter, texts, emitted)
        texts = [[*text, 2] if said else text for text, said in zip(texts, emitted, strict=True)]
    assert compared == [4] * 4 + [5] * 4


def test_a_draft_leaves_room_for_the_targets_own_token() -> None:
    text = [1, 2] * (LONGEST // 2 - 1)
    assert len(proposed(proposer(), [text], [[2]])[0]) == LONGEST - len(text) - 1 < DRAFT


def test_the_longest_n_gram_is_told() -> None:
    text = [1, 2, 3, 9, 2, 3, 8, 2, 3, 8, 1, 2, 3]
    assert expected(text, 2) != expected(text, 4) == proposed(proposer(4), [text], [[3]])[0]
