"""A conversion's output is whole or not there, and the command line says what went wrong in one line."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from build.converters.__main__ import main
from build.converters.dispatch import FAMILIES, convert_drafter
from build.converters.errors import ConversionError
from build.converters.output import PROVENANCE_FILE
from build.converters.sharding import join, join_key_values, padded_vocabulary, split, split_key_values
from build.trtllm.engines.commands import build_steps
from build.trtllm.support.matrix import resolve
from tests.build.converters import targets
from tests.build.trtllm.specs import deployment
from tests.speculators import released

FILE = "medusa_lm_head.safetensors"


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    return released.write(tmp_path / "heads", *released.medusa(), FILE)


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_truncated_rank_files_and_drafters_are_named(cut: int, drafter: Path, tmp_path: Path) -> None:
    target = targets.engine_checkpoint(tmp_path / "target", 2)
    rank = target / "rank1.safetensors"
    rank.write_bytes(rank.read_bytes()[:-cut])
    with pytest.raises(ConversionError, match=r"rank1\.safetensors is damaged or incomplete"):
        convert_drafter("medusa", drafter, target, tmp_path / "out")
    rank.unlink()
    with pytest.raises(ConversionError, match=r"rank1\.safetensors is missing"):
        convert_drafter("medusa", drafter, target, tmp_path / "out")
    heads = drafter / FILE
    heads.write_bytes(heads.read_bytes()[:-cut])
    with pytest.raises(ConversionError, match=r"medusa_lm_head\.safetensors is damaged or incomplete"):
        convert_drafter("medusa", drafter, targets.engine_checkpoint(tmp_path / "whole"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_that_has_a_drafter_already_is_refused(drafter: Path, tmp_path: Path) -> None:
    convert_drafter("medusa", drafter, targets.engine_checkpoint(tmp_path / "target"), tmp_path / "once")
    config = json.loads((tmp_path / "once" / "config.json").read_text()) | {
        "architecture": "LlamaForCausalLM"
    }
    (tmp_path / "once" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=r"has medusa_heads\.0\..* already"):
        convert_drafter("medusa", drafter, tmp_path / "once", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_types_that_numpy_does_not_know_are_kept_byte_for_byte(drafter: Path, tmp_path: Path) -> None:
    target = targets.engine_checkpoint(tmp_path / "target")
    path, content = target / "rank0.safetensors", bytes(range(24))
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4, 6], "data_offsets": [0, 24]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)
    convert_drafter("medusa", drafter, target, tmp_path / "out")
    with safe_open(tmp_path / "out" / "rank0.safetensors", framework="numpy") as file:
        assert file.get_slice("w").get_dtype() == "F8_E4M3"
        assert file.get_tensor("medusa_heads.0.lm_head.weight").shape == (48, 16)
    merged = (tmp_path / "out" / "rank0.safetensors").read_bytes()
    start = 8 + int.from_bytes(merged[:8], "little")
    assert merged[start : start + 24] == content


def test_a_full_disk_leaves_the_earlier_result(drafter: Path, tmp_path: Path) -> None:
    target = targets.engine_checkpoint(tmp_path / "target")
    convert_drafter("medusa", drafter, target, tmp_path / "out")
    before = targets.files(tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # writing past it fails as a full disk does
    try:
        with pytest.raises(ConversionError, match="cannot be written"):
            convert_drafter("medusa", drafter, target, tmp_path / "out", num_heads=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert targets.files(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads", "out", "target"]


def test_only_what_a_conversion_wrote_is_replaced(drafter: Path, tmp_path: Path) -> None:
    target = targets.engine_checkpoint(tmp_path / "target")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="holds something that no conversion wrote"):
        convert_drafter("medusa", drafter, target, precious)
    assert targets.files(precious) == {"notes.txt": b"mine"}
    with pytest.raises(ConversionError, match="is a file"):
        convert_drafter("medusa", drafter, target, precious / "notes.txt")
    for source in (drafter, target):
        with pytest.raises(ConversionError, match="is what is read"):
            convert_drafter("medusa", drafter, target, source)
    (tmp_path / "out").mkdir()
    for count in (3, 2):
        convert_drafter("medusa", drafter, target, tmp_path / "out", num_heads=count)
        assert json.loads((tmp_path / "out" / "config.json").read_text())["num_medusa_heads"] == count
    provenance = json.loads((tmp_path / "out" / PROVENANCE_FILE).read_text())
    assert provenance["sources"] == [str(drafter), str(target)]
    assert provenance["family"] == "medusa"


def test_an_unknown_family_is_told_the_known_ones(drafter: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConversionError, match=r"'hydra'; known are medusa, eagle, eagle3, redrafter, mlp_speculator"
    ):
        convert_drafter("hydra", drafter, drafter, tmp_path / "out")


def test_the_command_converts_and_restores_in_a_process_of_its_own(drafter: Path, tmp_path: Path) -> None:
    target = targets.engine_checkpoint(tmp_path / "target", 2, dtype="bfloat16")
    command = [sys.executable, "-m", "build.converters"]
    choices = ["--tp-size", "2", "--dtype", "bfloat16", "--num-medusa-heads", "2", "--max-draft-length", "15"]
    places = ["--drafter", str(drafter), "--target", str(target), "--output", str(tmp_path / "out")]
    run = subprocess.run([*command, "medusa", *places, *choices], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        f"converted: {tmp_path / 'out'} (layout checkpoint)",
        "note: trtllm-build needs --speculative_decoding_mode medusa",
    ]
    places = ["--checkpoint", str(tmp_path / "out"), "--output", str(tmp_path / "again")]
    subprocess.run([*command, "restore", "medusa", *places], capture_output=True, check=True)
    _, weights = released.medusa(heads=3)
    expected = {name: w.astype(targets.DTYPES["bfloat16"]) for name, w in weights.items() if name[0] in "01"}
    assert released.same(load_file(tmp_path / "again" / FILE), expected)


def test_the_command_fails_with_two_and_one_line(
    drafter: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    places = [
        "--drafter",
        str(drafter),
        "--target",
        str(tmp_path / "none"),
        "--output",
        str(tmp_path / "out"),
    ]
    for family in FAMILIES:
        assert main([family, *places]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        main(["medusa", "--drafter", "x"])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("method", "keys"),
    [("medusa", {}), ("eagle", {}), ("redrafter", {}), ("redrafter", {"greedy_search": False})],
)
def test_the_build_plans_command_is_one_that_is_understood(
    method: str, keys: dict, capsys: pytest.CaptureFixture
) -> None:
    """A wrong flag would end in argparse's usage; these end at the checkpoint that is not there."""
    steps = build_steps(resolve(deployment(method, "A", "engines", speculation=keys)))
    [command] = [step.command for step in steps if "build.converters" in step.command]
    assert main(command[3:]) == 2
    assert "config.json is missing" in capsys.readouterr().err


def test_every_familys_own_options_reach_it(tmp_path: Path) -> None:
    target = targets.engine_checkpoint(tmp_path / "target")
    eagle = released.write(tmp_path / "eagle", *released.eagle())
    places = ["--target", str(target), "--output", str(tmp_path / "out")]
    limits = ["--max-draft-length", "20", "--num-eagle-layers", "2", "--max-non-leaves-per-layer", "7"]
    assert main(["eagle", "--drafter", str(eagle), *places, *limits]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[key] for key in ("max_draft_len", "num_eagle_layers", "max_non_leaves_per_layer")] == [
        20,
        2,
        7,
    ]
    head = released.write(tmp_path / "head", *released.redrafter())
    options = ["--num-beams", "3", "--draft-length", "4", "--sampling"]
    assert main(["redrafter", "--drafter", str(head), *places, *options]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    keys = ("redrafter_num_beams", "redrafter_draft_len_per_beam", "redrafter_greedy_search")
    assert [config[key] for key in keys] == [3, 4, False]


def test_the_converters_import_no_more_than_the_container_has() -> None:
    """NVIDIA's image has no typer, no OpenVINO, no tokenizers of the kit's version; PyTorch only for pickles."""
    absent = (
        "torch",
        "typer",
        "rich",
        "openvino",
        "tokenizers",
        "gguf",
        "onnx",
        "tritonclient",
        "scipy",
        "yaml",
    )
    script = f"import sys\nfor name in {absent}: sys.modules[name] = None\nimport build.converters.__main__"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@given(st.integers(1, 9), st.integers(1, 300))
def test_a_padded_vocabulary_is_the_next_multiple(tp_size: int, vocabulary: int) -> None:
    padded = padded_vocabulary(vocabulary, tp_size)
    assert padded % tp_size == 0
    assert vocabulary <= padded < vocabulary + tp_size


@given(
    heads=st.sampled_from([1, 2, 4, 8]),
    tp_size=st.sampled_from([1, 2, 4, 8]),
    width=st.integers(1, 3),
    axis=st.integers(0, 1),
)
def test_splitting_and_joining_are_inverse(heads: int, tp_size: int, width: int, axis: int) -> None:
    values = np.random.default_rng(0).standard_normal((heads * width, 8))
    parts = split_key_values("k", values, heads, tp_size)
    assert len(parts) == tp_size
    np.testing.assert_array_equal(join_key_values(parts, heads), values)
    square = np.arange(64 * 8).reshape(64, 8)
    np.testing.assert_array_equal(join(split("s", square, tp_size, axis), axis), square)
    if heads == 2:
        with pytest.raises(ConversionError, match="2 heads cannot be shared out over 3"):
            split_key_values("k", values, heads, 3)
