"""Reading and writing tensor files and configs: exact, whole or not at all, and every fault named."""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from speculators.formats.checkpoint import check_tensors
from speculators.formats.config import PublishedConfig
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import as_dtype, dtype_of, read_tensors, write_pickle, write_safetensors
from tests.speculators import released

TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_)


@settings(max_examples=40, deadline=None)
@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5),
    kind=st.sampled_from(TYPES),
    seed=st.integers(0, 99),
)
def test_every_type_comes_back_bit_for_bit(
    shape: tuple[int, ...], kind: type, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values: np.ndarray = (np.random.default_rng(seed).standard_normal(shape) * 3).astype(kind)
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    write_safetensors(path, {"a.weight": values, "b": values.T})
    assert released.same(read_tensors(path), {"a.weight": values, "b": np.ascontiguousarray(values.T)})


@pytest.mark.torch
@pytest.mark.parametrize("kind", TYPES)
def test_pickles_come_back_bit_for_bit(kind: type, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    values: np.ndarray = (np.random.default_rng(0).standard_normal((3, 4)) * 3).astype(kind)
    write_pickle(tmp_path / "x.pt", {"a": values})
    assert released.same(read_tensors(tmp_path / "x.pt"), {"a": values})


@pytest.mark.torch
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")

    class Exploit:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": Exploit()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"x\.pt is damaged, or holds more than plain tensors"):
        read_tensors(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.torch
def test_truncated_and_foreign_pickles_are_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    write_pickle(tmp_path / "x.pt", {"a": np.zeros((50, 50), np.float32)})
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"x\.pt is damaged"):
        read_tensors(tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_tensors(tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "number.pt")
    with pytest.raises(CheckpointError, match="'a' is no tensor"):
        read_tensors(tmp_path / "number.pt")


def test_truncated_and_missing_safetensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros((50, 50), np.float32)}, path)
    whole = path.read_bytes()
    for length in (3, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged or incomplete"):
            read_tensors(path)
    with pytest.raises(CheckpointError, match=r"y\.safetensors is missing"):
        read_tensors(tmp_path / "y.safetensors")


def test_shards_are_joined_and_only_those_needed_are_opened(tmp_path: Path) -> None:
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert set(read_tensors(index, lambda name: name == "a")) == {"a"}
    with pytest.raises(CheckpointError, match=r"2\.safetensors is missing"):
        read_tensors(index)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map is missing or empty"):
        read_tensors(index)


@pytest.mark.parametrize("write", [write_safetensors, pytest.param(write_pickle, marks=pytest.mark.torch)])
def test_a_full_disk_leaves_what_was_there(write: Any, tmp_path: Path) -> None:
    if write is write_pickle:
        pytest.importorskip("torch")
    path = tmp_path / "x.safetensors"
    write(path, {"a": np.ones(2, np.float32)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, limits[1])
    )  # writing past it fails as a full disk does
    try:
        with pytest.raises(OSError, match=r"File too large|cannot be written"):
            write(path, {"a": np.ones(50_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_bytes() == before


def test_whoever_may_read_a_new_file_may_read_the_weights(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"weight": np.zeros(2, np.float32)})
    (tmp_path / "config.json").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_casts_are_exact_where_possible_and_refused_where_values_do_not_fit() -> None:
    weights = {"w": np.array([1.5, -70000.0], np.float32), "ids": np.array([7])}
    narrowed = as_dtype(weights, "bfloat16")
    assert narrowed["w"].dtype == ml_dtypes.bfloat16
    assert narrowed["ids"] is weights["ids"]
    with pytest.raises(CheckpointError, match="w holds values that do not fit float16; use bfloat16"):
        as_dtype(weights, "float16")
    with pytest.raises(CheckpointError, match="cannot be 'int8'"):
        as_dtype(weights, "int8")
    assert dtype_of(narrowed) == "bfloat16"
    assert dtype_of(narrowed | {"v": np.ones(1, np.float32)}) == "float32"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1.0, np.nan], np.float32), "w holds values that are not finite"),
        (np.array([1.0, 2.0], np.float64), "w is stored as float64; weights must be one of"),
        (np.array([[1.0, 2.0]], np.float32), r"w has shape \[1, 2\]; config\.json says \[2\]"),
    ],
)
def test_a_tensor_that_cannot_be_weights_is_named(values: np.ndarray, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_tensors("here", {"w": values}, {"w": (2,)})


def test_a_config_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    content = {
        "torch_dtype": "float16",
        "dtype": "float16",
        "transformers_version": "4.1",
        "nested": {"a": [1]},
    }
    config = PublishedConfig.parse(content, "here")
    assert config.content() == content
    assert config.stored_as("bfloat16").content() == {
        "torch_dtype": "bfloat16",
        "transformers_version": "4.1",
        "nested": {"a": [1]},
    }
    config.write(tmp_path)
    assert PublishedConfig.read(tmp_path) == config


@pytest.mark.parametrize(("text", "message"), [("[]", "holds a JSON list"), ("{", "cannot be read as JSON")])
def test_a_config_that_is_no_object_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        PublishedConfig.read(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        PublishedConfig.read(tmp_path)


def test_formats_do_not_import_pytorch_and_pickles_say_what_they_need(tmp_path: Path) -> None:
    released.write(tmp_path, *released.medusa(), "medusa_lm_head.safetensors")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text((tmp_path / "config.json").read_text())
    (tmp_path / "pickled" / "medusa_lm_head.pt").write_bytes(b"")
    script = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
import speculators.eagle.checkpoint, speculators.eagle3.checkpoint, speculators.redrafter.checkpoint
import speculators.mlp_speculator.checkpoint
from speculators.medusa.checkpoint import load_checkpoint, save_checkpoint
checkpoint = load_checkpoint(Path({str(tmp_path)!r}))
save_checkpoint(checkpoint, Path({str(tmp_path)!r}))
try:
    load_checkpoint(Path({str(tmp_path / "pickled")!r}))
except ValueError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "PyTorch is not installed" in told
    assert "drafthouse[train]" in told
