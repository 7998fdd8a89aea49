"""The list of tokens that can be drafted, under the name of today and that of earlier checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speculators.formats.draft_vocabulary import (
    VOCABULARY_FILE,
    read_draft_vocabulary,
    write_draft_vocabulary,
)
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import write_safetensors

KEPT = np.array([1, 4, 7], np.int64)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_draft_vocabulary(tmp_path, 9) is None
    write_draft_vocabulary(tmp_path, KEPT)
    np.testing.assert_array_equal(read_draft_vocabulary(tmp_path, 9), KEPT)


def test_checkpoints_that_were_trained_earlier_are_read(tmp_path: Path) -> None:
    write_safetensors(tmp_path / VOCABULARY_FILE, {"kept": KEPT})
    np.testing.assert_array_equal(read_draft_vocabulary(tmp_path, 9), KEPT)


def test_other_tensors_are_no_list(tmp_path: Path) -> None:
    write_safetensors(tmp_path / VOCABULARY_FILE, {"tokens": KEPT})
    with pytest.raises(CheckpointError, match="named 'token_map'"):
        read_draft_vocabulary(tmp_path, 9)
