"""Vocabularies of one tokenizer that models pad differently.

Embeddings are padded to whatever size is convenient (Qwen2.5: 151,936 rows in small models, 152,064 in large ones, for
a tokenizer of 151,665). No text has a token above the tokenizer's, so drafter and target fit together where both have
all of those. The drafter proposes nothing that the target lacks, and reads what it lacks itself as rows of zeros.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from build.targets.errors import TargetError
from engine.serving.tokenizer_files import vocabulary


def is_padding(target: Path, *sizes: int) -> bool:
    """Whether vocabularies of these sizes differ in padding alone: all have every token of the target's tokenizer.

    Raises:
        TargetError: the tokenizer is damaged.
    """
    try:
        known = vocabulary(target / "tokenizer.json")
    except ValueError as error:
        raise TargetError(f"{target}: {error}") from error
    return bool(known) and max(known.values()) < min(sizes)


def fitted(rows: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """An embedding [V, H], cut or padded with zeros to `size` rows."""
    if len(rows) >= size:
        return rows[:size]
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
