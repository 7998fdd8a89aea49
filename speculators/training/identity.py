"""Which run a directory belongs to, so that none is taken up with other settings and no other one's result is replaced.

A run's directory holds `run.json`: everything that decides what comes out, written before the first step. Its hash is
the run's name in `training.json` of the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deployments.files.directories import check_replaceable
from deployments.files.reading import read_json_object
from deployments.files.writing import write_json
from deployments.training import TrainingSpec
from speculators.formats.draft_vocabulary import VOCABULARY_FILE
from speculators.formats.errors import CheckpointError
from speculators.training.errors import TrainingError
from speculators.training.provenance import PROVENANCE_FILE

RUN_FILE = "run.json"
_STATES = "state-????????"
# All that the writers of checkpoints and the drawing of curves have written before they listed it, and what such
# checkpoints say of themselves.
_UNLISTED = (
    *(PROVENANCE_FILE, "config.json", "model.safetensors", "model.safetensors.index.json", VOCABULARY_FILE),
    "medusa_lm_head.safetensors",
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "curves.png",
    ),
)
_TOLD = ("method", "target", "training", "data", "processes", "held_out", "versions", "machine")
_COMMON = (
    *("depth", "labels", "batch_tokens", "accumulation", "optimizer", "learning_rate", "seed"),
    "mixed_precision",
)

Identity = Mapping[str, Any]


def settings_used(training: TrainingSpec, own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the loop reads, and those of its own that a family says it uses."""
    return {**{key: getattr(training, key) for key in _COMMON}, **own}


def run_id(identity: Identity) -> str:
    """Short name of a run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def check_run(directory: Path, identity: Identity, *, fresh: bool) -> None:
    """Refuse to take up another run.

    Args:
        directory: of one stage of the run.
        identity: of the run that is wanted.
        fresh: another one may be set aside.

    Raises:
        TrainingError: the directory holds another run, and `fresh` is off.
    """
    if fresh or not _is_used(directory):
        return
    begun = _read(directory / RUN_FILE)
    if begun == json.loads(json.dumps(identity)):
        return
    raise TrainingError(
        f"{directory} holds a run that was begun with other settings ({_difference(begun, identity)}); --fresh sets it "
        "aside and begins anew"
    )


def begin_run(directory: Path, identity: Identity, *, fresh: bool) -> None:
    """Make the directory that of this run; an earlier one keeps its files under the next free number.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        if fresh and _is_used(directory):
            _set_aside(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / RUN_FILE, identity, indent=1)
    except OSError as error:
        raise TrainingError(f"{directory} cannot be written: {error}") from error


def begun_run(directory: Path) -> str | None:
    """Name of the run whose directory this is."""
    begun = _read(directory / RUN_FILE)
    return None if begun is None else run_id(begun)


def check_checkpoint(checkpoint: Path, runs: Collection[str | None], *, replace: bool) -> None:
    """Refuse to replace what another run has made.

    Args:
        checkpoint: where the result is to go.
        runs: names of the runs whose checkpoint may be replaced.
        replace: another run's checkpoint may be replaced.

    Raises:
        ForeignDirectoryError: something is there that no training has made.
        TrainingError: the checkpoint of another run is there, and `replace` is off.
    """
    check_replaceable(checkpoint, PROVENANCE_FILE, unlisted_files(checkpoint))
    if replace or not (checkpoint / PROVENANCE_FILE).is_file():
        return
    made = _read(checkpoint / PROVENANCE_FILE) or {}
    if made.get("run") is not None and made["run"] in runs:
        return
    length = made.get("held_out", {}).get("length")
    about = f", acceptance length {length:.2f} held out" if isinstance(length, float) else ""
    raise TrainingError(
        f"{checkpoint} holds a checkpoint of another run ({made.get('method', 'unknown method')}{about}); name another "
        "directory under training.checkpoint, or give --replace"
    )


def unlisted_files(checkpoint: Path) -> Collection[str]:
    """Files of a checkpoint that was trained before the kit listed them; none if it is not such a one."""
    made = _read(checkpoint / PROVENANCE_FILE) or {}
    return _UNLISTED if all(key in made for key in _TOLD) and "run" not in made else ()


def latest_state(directory: Path) -> tuple[Path, int] | None:
    """The newest state of a run that it can resume from, and its step."""
    states = sorted(directory.glob(_STATES))
    return (states[-1], int(states[-1].name.rpartition("-")[2])) if states else None


def _is_used(directory: Path) -> bool:
    return (directory / RUN_FILE).exists() or latest_state(directory) is not None


def _set_aside(directory: Path) -> None:
    number = 1
    while (place := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(place)


def _difference(begun: Identity | None, wanted: Identity) -> str:
    if begun is None:
        return f"{RUN_FILE} is missing or damaged"
    flat, other = _flat(begun), _flat(wanted)
    names = [name for name in {**flat, **other} if flat.get(name) != other.get(name)]
    return ", ".join(f"{name} {flat.get(name)}, not {other.get(name)}" for name in names)


def _flat(identity: Identity) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(identity)).items():
        if isinstance(value, dict):
            found |= value if key == "settings" else {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            found[key] = value
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path, CheckpointError)
    except CheckpointError:
        return None
