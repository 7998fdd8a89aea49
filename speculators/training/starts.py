"""Training from a checkpoint: what that fixes is taken from it, and a section that says otherwise is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deployments.files.reading import read_json_object
from deployments.training import TrainingSpec
from speculators.eagle import checkpoint as eagle
from speculators.eagle3 import checkpoint as eagle3
from speculators.formats.checkpoint import Checkpoint
from speculators.formats.config import PublishedConfig
from speculators.formats.draft_vocabulary import drafted_ids
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import Array
from speculators.medusa import checkpoint as medusa
from speculators.mlp_speculator import checkpoint as mlp_speculator
from speculators.peagle import checkpoint as peagle
from speculators.peagle.config import is_peagle
from speculators.training.errors import TrainingError
from speculators.training.provenance import PROVENANCE_FILE, checkpoint_hash

KEY = "training.from_pretrained"


class Sizes(Protocol):
    """Of a target."""

    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Start:
    """The checkpoint that a run begins from.

    Attributes:
        directory: where it is.
        kept: its draft vocabulary, target ids in the order of its rows.
        fixed: keys of the training section that it decides, and what they are.
        weights: the checkpoint as the method's reader gives it; None for a model in Hugging Face layout.
    """

    directory: Path
    kept: Array
    fixed: Mapping[str, Any]
    weights: Any = None

    def identity(self) -> dict[str, str]:
        """Its name, and a hash of what is in it."""
        return {"name": self.directory.resolve().name, "sha256": checkpoint_hash(self.directory)}


def check_start(training: TrainingSpec, checkpoint: Path) -> None:
    """Find out whether there is a checkpoint to begin from, which the result does not replace.

    Raises:
        TrainingError: there is none, or it lies where the result goes.
    """
    directory = training.from_pretrained
    if directory is None:
        return
    if not directory.is_dir():
        raise TrainingError(f"{KEY}: {directory} is no directory; name the one of a checkpoint")
    if directory.resolve() == checkpoint.resolve():
        raise TrainingError(
            f"{KEY}: {directory} is where the result goes, which would replace what it was made from; name another "
            "directory under training.checkpoint"
        )


def open_start(method: str, training: TrainingSpec, target: Sizes) -> tuple[Start, TrainingSpec]:
    """Read the checkpoint that the section names; returns it, and the section with what it fixes.

    Raises:
        CheckpointError: it is missing or damaged.
        TrainingError: it is another target's, or the section contradicts it.
    """
    directory = training.from_pretrained
    assert directory is not None
    start = _READERS[method](directory, target)
    given = training.model_dump(include=training.model_fields_set & start.fixed.keys(), exclude_none=True)
    if "draft_vocab_size" in given:
        given["draft_vocab_size"] = min(given["draft_vocab_size"], target.vocab_size)
    wrong = {key: value for key, value in given.items() if value != start.fixed[key]}
    if wrong:
        told = " and ".join(
            f"training.{key} is {_told(value)}, but {directory} has {_told(start.fixed[key])}"
            for key, value in wrong.items()
        )
        raise TrainingError(f"{told}; what training begins from decides: leave out {', '.join(wrong)}")
    return start, training.model_copy(update=dict(start.fixed))


def _told(value: object) -> object:
    if value is None:
        return "no record of it"
    return list(value) if isinstance(value, tuple) else value


def _eagle3(directory: Path, target: Sizes) -> Start:
    return _fused(directory, eagle3.load_checkpoint(directory), target, {})


def _peagle(directory: Path, target: Sizes) -> Start:
    if not is_peagle(directory):  # an EAGLE-3 drafter, whose layer becomes the first of several
        return _eagle3(directory, target)
    checkpoint = peagle.load_checkpoint(directory)
    return _fused(directory, checkpoint, target, {"drafter_layers": checkpoint.config.num_hidden_layers})


def _fused(directory: Path, checkpoint: Checkpoint[Any], target: Sizes, fixed: Mapping[str, Any]) -> Start:
    config = checkpoint.config
    widths = {"width of the features": config.feature_width}
    if not {eagle.EMBEDDING, eagle3.OUTPUT} <= checkpoint.tensors.keys():  # which are the target's then
        widths["hidden_size"] = config.hidden_size
    _check_sizes(directory, target, widths, config.vocab_size)
    if config.target_layers is not None:
        layers = tuple(layer + 1 for layer in config.target_layers)
        if not all(0 <= layer <= target.num_layers for layer in layers):
            raise TrainingError(
                f"{directory} is of another target: it reads hidden states {list(layers)}, the target has 0 to "
                f"{target.num_layers}"
            )
        fixed = {**fixed, "layers": layers}
    return _start(directory, eagle3.target_ids(checkpoint), fixed, checkpoint)


def _mlp_speculator(directory: Path, target: Sizes) -> Start:
    checkpoint = mlp_speculator.load_checkpoint(directory)
    config = checkpoint.config
    _check_sizes(directory, target, {"emb_dim": config.emb_dim}, config.vocab_size)
    kept = drafted_ids(directory, target.vocab_size)
    fixed = {"depth": config.n_predict, **_settings(directory, "inputs")}
    return _start(directory, kept, fixed, mlp_speculator.in_rows(checkpoint, kept))


def _medusa(directory: Path, target: Sizes) -> Start:
    checkpoint = medusa.load_checkpoint(directory)
    config = checkpoint.config
    _check_sizes(
        directory,
        target,
        {"width of the heads": medusa.hidden_size(checkpoint)},
        medusa.vocab_size(checkpoint),
    )
    fixed = {"depth": config.medusa_num_heads, "medusa_blocks": config.medusa_num_layers}
    return _start(directory, drafted_ids(directory, target.vocab_size), fixed, checkpoint)


def _draft_model(directory: Path, target: Sizes) -> Start:
    config = PublishedConfig.read(directory).content()
    _check_sizes(directory, target, {}, config.get("vocab_size"))
    fixed = {"keep_layers": None, **_settings(directory, "keep_layers")}
    return _start(directory, drafted_ids(directory, target.vocab_size), fixed, None)


def _start(directory: Path, kept: Array, fixed: Mapping[str, Any], weights: Any) -> Start:
    return Start(directory, kept, {"draft_vocab_size": len(kept), **fixed}, weights)


def _settings(directory: Path, *keys: str) -> dict[str, Any]:
    """Of settings that the published format does not tell, those that the kit has noted beside it."""
    try:
        noted = read_json_object(directory / PROVENANCE_FILE, CheckpointError)
    except CheckpointError:
        return {}
    settings = noted.get("settings", noted.get("training"))
    found = {key: settings[key] for key in keys if settings.get(key)} if isinstance(settings, dict) else {}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _check_sizes(directory: Path, target: Sizes, widths: Mapping[str, int], vocabulary: int | None) -> None:
    for name, width in widths.items():
        if width != target.hidden_size:
            raise TrainingError(
                f"{directory} is of another target: {name} is {width}, the target's hidden_size is "
                f"{target.hidden_size}"
            )
    if vocabulary not in (None, target.vocab_size):
        raise TrainingError(
            f"{directory} is of another target: it knows {vocabulary} tokens, the target {target.vocab_size}"
        )


_READERS: Mapping[str, Callable[[Path, Sizes], Start]] = {
    "eagle3": _eagle3,
    "peagle": _peagle,
    "mlp_speculator": _mlp_speculator,
    "medusa": _medusa,
    "draft_model": _draft_model,
}
