"""Distilling a draft: a few layers of the target, of full width, trained on what the target writes.

Wide and shallow: latency of a small model is the number of its layers, so those that are kept stay whole (as in
layer-pruned drafts, arXiv 2402.01528 on depth against width). Embedding and output matrix are the target's own and
frozen, the output in the rows of the draft vocabulary. Loss: cross-entropy against the target's distribution.

A draft that is trained further may be any model with the target's vocabulary. Its embedding and output matrix stay what
they are; they are saved where they are not the target's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from speculators.draft_model.checkpoint import EMBEDDING, OUTPUT, complete_draft, save_draft, whole_model
from speculators.formats.tensors import as_dtype, numpy_array
from speculators.training.errors import TrainingError
from speculators.training.features import Batch
from speculators.training.target import FrozenTarget
from speculators.training.trainee import Trainee


class DraftTrainee(Trainee):
    """The draft and what it learns."""

    _own_output: torch.Tensor | None

    def __init__(
        self,
        target: FrozenTarget,
        kept: torch.Tensor,
        layers: Sequence[int],
        *,
        depth: int,
        soft: bool,
        embedding: bool = True,
        start: Path | None = None,
    ) -> None:
        """`layers` of the target are kept, in this order; `embedding` says whether its embedding is saved as well.

        `start` is the draft that training begins from, instead of layers of the target.

        Raises:
            TrainingError: the target has no such layer, or the draft cannot be loaded, or be saved without embedding.
            CheckpointError: the draft was cut out of another model.
        """
        super().__init__(target.lm_head, kept, soft=soft, decay=1.0)
        self.depth, self._target_directory, self._saves_embedding = depth, target.directory, embedding
        self.register_buffer("_own_output", None, persistent=False)
        if start is not None:
            self._take_over(start, target, kept)
            return
        if not layers or not all(0 <= layer < target.num_layers for layer in layers):
            raise TrainingError(
                f"training.keep_layers is {list(layers)}; the target has layers 0 to {target.num_layers - 1}"
            )
        config = copy.deepcopy(target.config)
        config.num_hidden_layers = len(layers)
        self.model: Any = type(target.model)(config)
        decoder = self.model.get_decoder()
        for place, layer in zip(decoder.layers, layers, strict=True):
            place.load_state_dict(target.layers[layer].state_dict())
        decoder.norm.load_state_dict(target.model.get_decoder().norm.state_dict())
        decoder.embed_tokens.load_state_dict(target.model.get_input_embeddings().state_dict())
        self.model.tie_weights()
        self._freeze()

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Trainee.forward`. A draft reads tokens only, so its hits are the same at every depth."""
        decoder, rows = self.model.get_decoder(), self.rows(batch)
        states = decoder(input_ids=batch.tokens, use_cache=False).last_hidden_state
        output = self._target_output if self._own_output is None else self._own_output
        loss, hits = self.judge(states.float(), output, batch, rows, depth=0)
        return loss, hits.expand(self.depth, -1, -1)

    def save(self, directory: Path) -> None:
        """Write the model in bfloat16: whole, with the target's tokenizer, or without what the target has."""
        state = self.model.state_dict()
        names = [name for name in state if name not in self._left_out()]
        tensors = {name: numpy_array(state[name]) for name in names}
        save_draft(self.model.config.to_dict(), as_dtype(tensors, "bfloat16"), self._kept.numpy(), directory)
        if self._saves_embedding:
            complete_draft(directory, self._target_directory, directory)

    def _left_out(self) -> tuple[str, ...]:
        """Matrices that are the target's, or stored by another name."""
        if self._own_output is None:
            return EMBEDDING, OUTPUT
        return (OUTPUT,) if self.model.config.tie_word_embeddings else ()

    def _take_over(self, start: Path, target: FrozenTarget, kept: torch.Tensor) -> None:
        with TemporaryDirectory() as directory:
            whole = whole_model(start, target.directory, Path(directory) / "draft")
            draft = FrozenTarget(whole, torch.device("cpu"))
        self.model = draft.model.requires_grad_(True)
        self.model.config.name_or_path = start.resolve().name  # and not where it was completed
        self._freeze()
        theirs = (target.embedding.cpu(), target.lm_head.cpu())
        if all(map(torch.equal, (draft.embedding, draft.lm_head), theirs)):
            return
        if not self._saves_embedding:
            raise TrainingError(
                f"training.save_embedding is false, but the embedding of {start} is not the target's; leave the key out"
            )
        self._own_output = draft.lm_head[kept].detach().to(torch.bfloat16)

    def _freeze(self) -> None:
        """Embedding and output matrix are not trained."""
        self.model.get_input_embeddings().requires_grad_(False)
        self.model.get_output_embeddings().requires_grad_(False)
