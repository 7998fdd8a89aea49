"""ANPD as a proposer of one's own in vLLM (`method: custom_class`): what the embedded engine drafts for the same text.

vLLM imports the class by its dotted name in every worker, makes it with its `VllmConfig`, and asks it for drafts after
each step. It is told the rows of the batch, not whose they are, and rows change hands. That does no harm: ANPD's draft
depends on a text alone, so a table serves whichever row holds the text that it has counted, and more. Verification is
vLLM's own.

Interface: vllm/v1/spec_decode/custom_class_proposer.py, and `propose_draft_token_ids` of v1/worker/gpu_model_runner.py
(0.32.0). `ngram` comes by `additional_config`, since a speculative configuration has no place for it.

Example::

    LLM(
        model=...,
        speculative_config={"method": "custom_class", "model": "drafthouse.engine.vllm.proposer.AnpdProposer",
                            "num_speculative_tokens": 7},
        additional_config={"drafthouse": {"ngram": 5}},
    )
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.vllm.draft_length import DraftLength
from speculators.anpd import NgramTable

KIT_KEY = "drafthouse"  # as in `engine.vllm.methods`, which needs more packages than vLLM's environment has
_NGRAM = 5

Tokens = NDArray[np.int32]


class AnpdProposer:
    """Drafts for the rows of a batch, each from its own n-grams."""

    def __init__(self, vllm_config: Any) -> None:
        """Take draft length, schedule and limits from vLLM's configuration."""
        self._ngram = int((vllm_config.additional_config or {}).get(KIT_KEY, {}).get("ngram", _NGRAM))
        self._length = DraftLength(vllm_config)
        self._texts: list[_Text | None] = []  # of the last step, one a row; None where it emitted nothing

    def load_model(self, *_: Any, **__: Any) -> None:
        """There is no model to load."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[Any],
        token_ids_cpu: Tokens,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """One draft a row; an empty one where the row is still reading its prompt, or nothing is found.

        Args:
            sampled_token_ids: what each row has emitted in this step.
            num_tokens_no_spec: tokens of each row, without drafts.
            token_ids_cpu: ``[rows, max_model_len]``, prompt and output.
            slot_mappings: not used.
        """
        known, self._texts = self._texts, []
        drafts: list[list[int]] = []
        for row, emitted in enumerate(sampled_token_ids):
            if not emitted:
                drafts.append([])
                self._texts.append(None)
                continue
            tokens = token_ids_cpu[row, : int(num_tokens_no_spec[row])]
            text = _taken(known, tokens, row) or _Text(self._ngram)
            text.extend(tokens)
            self._texts.append(text)
            length = self._length.most(len(sampled_token_ids), len(tokens))
            drafts.append(list(text.table.draft(length)))
        return drafts


class _Text:
    """A table and the tokens that it has counted."""

    def __init__(self, ngram: int) -> None:
        self.table = NgramTable(ngram)
        self.tokens = np.zeros(0, np.int32)

    def begins(self, tokens: Tokens) -> bool:
        """Whether the tokens begin with what has been counted."""
        return np.array_equal(self.tokens, tokens[: len(self.tokens)])

    def extend(self, tokens: Tokens) -> None:
        """Count what is new; the tokens begin with what has been counted."""
        self.table.extend(tokens[len(self.tokens) :].tolist())
        self.tokens = tokens.copy()


def _taken(known: list[_Text | None], tokens: Tokens, row: int) -> _Text | None:
    """The counted text that these tokens continue, None being left in its place; None: there is none.

    Rows mostly stay where they are, so the text of this row's last step is looked at first. A text of which only a part
    has been counted is as good as one that has been counted further: the rest is counted then.
    """
    for place in itertools.chain(range(row, len(known)), range(min(row, len(known)))):
        text = known[place]
        if text is not None and text.begins(tokens):
            known[place] = None
            return text
    return None
