"""Whatever a model directory or file says, making a target of it changes nothing but the target's own directory."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from build.targets.architecture import Architecture
from build.targets.errors import TargetError
from build.targets.files import link_or_copy
from build.targets.prepare import prepare_target
from build.targets.weights import INDEX_FILE, load_weights
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import read_tensors
from tests.build.targets.tiny_models import (
    random_weights,
    tiny_config,
    tiny_gguf,
    write_huggingface,
    write_sharded,
)
from tests.trees import state_of

CONFIG = tiny_config("llama")
WEIGHTS = random_weights(Architecture.from_config(CONFIG))
HALVES = (
    {name: WEIGHTS[name] for name in sorted(WEIGHTS)[::2]},
    {name: WEIGHTS[name] for name in sorted(WEIGHTS)[1::2]},
)
NAMES = [
    *("model-1.safetensors", "model-2.safetensors", "a/model.safetensors", "b/model.safetensors"),
    *("../victim/model.safetensors", "../target/model.safetensors", "./model-1.safetensors"),
    *("a/../model-2.safetensors", "", ".", "..", "/etc/hosts", "nul\0.safetensors", "new\nline.safetensors"),
    *("config.json", "tokenizer_config.json", "drafthouse_target.json", INDEX_FILE, "LICENSE"),
    *("\udcff.safetensors", 7, None, ["model-1.safetensors"]),
]  # fmt: skip
FILES = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "LICENSE", "NOTICE.txt", "model-1.safetensors", "drafthouse_target.json", INDEX_FILE),
    *("added_tokens.json", "additional_chat_templates/rag.jinja"),
]  # fmt: skip


def write_source(directory: Path, first: object, second: object) -> None:
    """A model whose index names these two as its shards; they are there wherever they can be."""
    write_huggingface(directory, CONFIG, {})
    (directory / "model.safetensors").unlink()
    (directory / "LICENSE").write_text("all of it")
    (directory / "NOTICE.txt").write_text("noticed")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    for name, tensors in zip((first, second), HALVES, strict=True):
        if isinstance(name, str) and name.endswith(".safetensors") and "\0" not in name:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, directory / name)
    entries = [(tensor, name) for name, half in zip((first, second), HALVES, strict=True) for tensor in half]
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": dict(entries)}))


def nothing(target: Path) -> None:
    pass


def empty(target: Path) -> None:
    target.mkdir()


def precious(target: Path) -> None:
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")


def elsewhere(target: Path) -> None:
    victim = next(folder / "victim" for folder in target.parents if (folder / "victim").is_dir())
    target.symlink_to(victim)


def a_file(target: Path) -> None:
    target.write_text("x")


def marked_by_somebody(target: Path) -> None:
    precious(target)
    (target / "drafthouse_target.json").write_text(json.dumps({"files": ["x"]}))


def made_before_and_used(target: Path) -> None:
    made = write_huggingface(target.parent / "made", CONFIG, WEIGHTS)
    prepare_target(str(made), target)
    (target / "notes.txt").write_text("years of work")
    (target / "tokenizer.json").unlink()


@settings(max_examples=120, deadline=None)
@given(
    shards=st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES))
    | st.just(("model-1.safetensors", "model-2.safetensors")),
    links=st.dictionaries(st.sampled_from(FILES), st.sampled_from(["inside", "outside", "loop"]), max_size=2),
    before=st.sampled_from(
        [nothing, empty, precious, elsewhere, a_file, marked_by_somebody, made_before_and_used]
    ),
    place=st.sampled_from(["target", "source/target", "source"]),
)
def test_nothing_but_the_target_changes(
    shards: tuple[object, object], links: dict[str, str], before: Callable[[Path], None], place: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        write_huggingface(world / "victim", CONFIG, WEIGHTS)
        write_source(world / "source", *shards)
        for name, where in links.items():
            link(world / "source" / name, where, world)
        target = world / place
        if not os.path.lexists(target):  # the source itself, or where a shard was put, is
            before(target)
        free = not os.path.lexists(target) or (
            target.is_dir() and not target.is_symlink() and not any(target.iterdir())
        )
        then = state_of(world, without=target if free else None)
        try:
            prepare_target(str(world / "source"), target)
        except TargetError:
            free = False
        else:
            assert len(load_weights(target)) == len(WEIGHTS)
            assert not any(path.is_symlink() for path in target.iterdir())
        assert state_of(world, without=target if free else None) == then or (
            # Refused where nothing was: nothing is there now, either.
            not free and state_of(world, without=target) == then and not any(target.glob("*"))
        )
        assert not list(world.rglob("*.partial"))


def link(path: Path, where: str, world: Path) -> None:
    """Put a file elsewhere, and a link to it in its place."""
    if where == "loop":
        path.unlink(missing_ok=True)
        path.symlink_to(path.name)
        return
    folder = (path.parent if where == "inside" else world) / "moved"
    folder.mkdir(exist_ok=True)
    if path.is_file():
        path.rename(folder / path.name)
    else:
        (folder / path.name).write_text("{}")
    path.symlink_to(folder / path.name)


@pytest.mark.parametrize(
    "shards",
    [
        ("../victim/model.safetensors", "model-2.safetensors"),
        ("a/model.safetensors", "b/model.safetensors"),
    ],
)
def test_shards_are_plain_names(shards: tuple[str, str], tmp_path: Path) -> None:
    """Each would be linked under its last name: over the other, or over what the other is a link to."""
    (tmp_path / "victim").mkdir()
    write_source(tmp_path / "source", *shards)
    for refused in (
        lambda: prepare_target(str(tmp_path / "source"), tmp_path / "target"),
        lambda: load_weights(tmp_path / "source"),
    ):
        with pytest.raises(
            TargetError, match="is no name of a shard; weight_map must name files of weights beside"
        ):
            refused()
    with pytest.raises(CheckpointError, match="is no name of a shard"):
        read_tensors(tmp_path / "source" / INDEX_FILE)


def test_a_link_out_of_the_directory_is_told(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)
    (tmp_path / "secret").write_text("mine")
    (source / "LICENSE").symlink_to("../secret")
    with pytest.raises(TargetError, match=f"LICENSE is a link out of its directory, to {tmp_path}/secret"):
        prepare_target(str(source), tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("leads", ["blobs", "elsewhere"])
def test_the_cache_of_the_hub_is_a_model_directory(leads: str, tmp_path: Path) -> None:
    """Its snapshots are links into the blobs of the same model, and into nothing else."""
    snapshot = write_sharded(tmp_path / "models--a--b" / "snapshots" / "0123", CONFIG, WEIGHTS)
    blobs = snapshot.parents[1] / leads
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..", "..", leads, str(number)))
    if leads == "blobs":
        before = state_of(tmp_path)
        target = prepare_target(str(snapshot), tmp_path / "target").directory
        assert len(load_weights(target)) == len(WEIGHTS)
        assert not any(path.is_symlink() for path in target.iterdir())
        assert state_of(tmp_path, without=target) == before
    else:
        with pytest.raises(TargetError, match="is a link out of its directory"):
            prepare_target(str(snapshot), tmp_path / "target")


@pytest.mark.parametrize(
    "name", ["drafthouse_target.json", "config.json", "model.safetensors", "tokenizer.json", "x.gguf", "x"]
)
def test_a_gguf_file_is_not_written_to_by_any_name(name: str, tmp_path: Path) -> None:
    tiny_gguf(tmp_path / name)
    before = state_of(tmp_path)
    summary = prepare_target(str(tmp_path / name), tmp_path / "target")
    assert state_of(tmp_path, without=summary.directory) == before
    assert summary.gguf is not None and summary.gguf.suffix == ".gguf"


def test_what_is_there_is_not_linked_over(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"
