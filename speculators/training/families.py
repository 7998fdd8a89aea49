"""The trainee of each method that can be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deployments.training import TrainingSpec
from speculators.data.samples import Sample
from speculators.draft_model.training import DraftTrainee
from speculators.eagle3.training import Eagle3Trainee, FusedBeginning
from speculators.medusa.training import MedusaTrainee
from speculators.mlp_speculator.training import MlpSpeculatorTrainee
from speculators.peagle.training import PEagleTrainee
from speculators.training.errors import TrainingError
from speculators.training.features import FeatureSource
from speculators.training.starts import Start
from speculators.training.target import FrozenTarget
from speculators.training.trainee import Trainee
from speculators.training.vocabulary import rarest_token

_DECAY = 0.8
_EXAMPLES = 128


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a trainee starts from.

    Attributes:
        target: the frozen target.
        kept: the draft vocabulary, target ids.
        samples: training data.
        source: hidden states of the target for them, of the layers that `layers_read` names.
        training: the spec's section, with what `start` fixes.
        start: the checkpoint that it begins from; None: it is made anew.
    """

    target: FrozenTarget
    kept: torch.Tensor
    samples: Sequence[Sample]
    source: FeatureSource
    training: TrainingSpec
    start: Start | None = None

    @property
    def weights(self) -> Any:
        """The checkpoint that it begins from, as the method's reader gives it."""
        return None if self.start is None else self.start.weights


def layers_read(training: TrainingSpec, num_layers: int) -> tuple[int, ...]:
    """Hidden states that are kept besides the final one; of the methods only EAGLE-3 and P-EAGLE read them.

    Raises:
        TrainingError: a layer is none of the target's.
    """
    layers = training.layers or (min(2, num_layers), num_layers // 2, max(0, num_layers - 3))
    if not all(0 <= layer <= num_layers for layer in layers):
        raise TrainingError(
            f"training.layers is {list(layers)}; the target has hidden states 0 to {num_layers}"
        )
    return layers


def _eagle3(given: Ingredients) -> Trainee:
    return Eagle3Trainee(fused_beginning(given), unroll=given.training.unroll)


def _peagle(given: Ingredients) -> Trainee:
    return PEagleTrainee(
        fused_beginning(given),
        decoders=given.training.drafter_layers,
        mask_token=rarest_token(given.samples, given.target.vocab_size),
    )


def fused_beginning(given: Ingredients) -> FusedBeginning:
    """What EAGLE-3 and P-EAGLE begin from."""
    training = given.training
    return FusedBeginning(
        target=given.target,
        layers=layers_read(training, given.target.num_layers),
        kept=given.kept,
        examples=given.source.states(given.samples[:_EXAMPLES]),
        depth=training.depth,
        decay=_DECAY,
        soft=_soft(training),
        start=given.weights,
    )


def _medusa(given: Ingredients) -> Trainee:
    training = given.training
    return MedusaTrainee(
        given.target,
        given.kept,
        depth=training.depth,
        blocks=training.medusa_blocks,
        decay=_DECAY,
        soft=_soft(training),
        start=given.weights,
    )


def _mlp_speculator(given: Ingredients) -> Trainee:
    training = given.training
    return MlpSpeculatorTrainee(
        given.target,
        given.kept,
        depth=training.depth,
        soft=_soft(training),
        use_state=training.inputs != "tokens",
        use_tokens=training.inputs != "state",
        start=given.weights,
    )


def _draft_model(given: Ingredients) -> Trainee:
    training = given.training
    return DraftTrainee(
        given.target,
        given.kept,
        _kept_layers(training, given.target.num_layers),
        depth=training.depth,
        soft=_soft(training),
        embedding=training.save_embedding,
        start=None if given.start is None else given.start.directory,
    )


def _soft(training: TrainingSpec) -> bool:
    return training.labels == "soft"


def own_settings(method: str, training: TrainingSpec, num_layers: int) -> dict[str, Any]:
    """What a method's trainee reads of the section beside what all read, as it is used.

    Raises:
        TrainingError: a layer is none of the target's.
    """
    if method == "eagle3":
        unroll = min(training.unroll, training.depth)
        return {"unroll": unroll, "layers": list(layers_read(training, num_layers))}
    if method == "peagle":
        layers = list(layers_read(training, num_layers))
        return {"drafter_layers": training.drafter_layers, "layers": layers}
    if method == "medusa":
        return {"medusa_blocks": training.medusa_blocks}
    if method == "mlp_speculator":
        return {"inputs": training.inputs}
    found: dict[str, Any] = {"save_embedding": training.save_embedding}
    if training.keep_layers or training.from_pretrained is None:
        found["keep_layers"] = list(_kept_layers(training, num_layers))
    return found


def _kept_layers(training: TrainingSpec, num_layers: int) -> tuple[int, ...]:
    last = num_layers - 1
    return training.keep_layers or tuple(dict.fromkeys((0, min(1, last), last)))


FAMILIES: Mapping[str, Callable[[Ingredients], Trainee]] = {
    "eagle3": _eagle3,
    "peagle": _peagle,
    "mlp_speculator": _mlp_speculator,
    "medusa": _medusa,
    "draft_model": _draft_model,
}
"""Makes the trainee of a method."""
