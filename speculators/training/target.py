"""The frozen target: hidden states of whole conversations, its embedding and its output matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speculators.training.arithmetic import in_mixed_precision
from speculators.training.errors import TrainingError

FINAL = -1
"""Names the state after the final norm, which the output matrix reads."""


class FrozenTarget:
    """A causal language model in Hugging Face layout that is only read.

    Hidden states are numbered as everywhere in the kit: i goes into layer i, `FINAL` comes out of the last norm.

    Args:
        directory: the model.
        device: where it runs.

    Raises:
        TrainingError: Transformers cannot load it.
    """

    def __init__(self, directory: Path, device: torch.device) -> None:
        # Transformers takes seconds to import, and only training needs it.
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise TrainingError(f"{directory}: the target cannot be loaded: {error}") from error
        self._model = loaded.eval().requires_grad_(False).to(device)
        self.directory, self.device = directory, device
        self.config: Any = self._model.config
        self.num_layers = int(self.config.num_hidden_layers)
        self.hidden_size = int(self.config.hidden_size)
        self.vocab_size = int(self.config.vocab_size)

    @property
    def embedding(self) -> torch.Tensor:
        """Token embedding, float32 ``[V, H]``."""
        return torch.as_tensor(self._model.get_input_embeddings().weight)

    @property
    def lm_head(self) -> torch.Tensor:
        """Output matrix, float32 ``[V, H]``; the target's logits are its product with the final state."""
        scale = getattr(self.config, "logits_scaling", 1.0)
        return torch.as_tensor(self._model.get_output_embeddings().weight) / float(scale)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        found = self._model.get_decoder().layers
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def model(self) -> Any:
        """The Transformers model."""
        return self._model

    @torch.no_grad()
    def states(self, tokens: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
        """Hidden states of conversations that are padded on the right.

        Args:
            tokens: int64 ``[B, T]``; what stands in the padding does not matter.
            wanted: which states.

        Returns:
            bfloat16 ``[B, T, len(wanted), H]``. Matrix products are done in bfloat16 where the device has it, sums of
            the residual stream in float32.
        """
        with in_mixed_precision(self.device):
            output = self._model.get_decoder()(
                input_ids=tokens.to(self.device), output_hidden_states=True, use_cache=False
            )
        every = output.hidden_states
        return torch.stack([every[index] for index in wanted], dim=2).to(torch.bfloat16)
