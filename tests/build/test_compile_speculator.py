"""Compiling speculators: done once, done again when something changed, and never for another target."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from build.drafters import check_same_tokenizer, compile_speculator
from build.targets.errors import TargetError
from deployments.speculation import (
    AnySpeculation,
    DraftModel,
    Eagle,
    Eagle3,
    Medusa,
    MlpSpeculator,
    Redrafter,
)
from engine.manifest import EngineError, load_manifest, load_speculator_manifest
from engine.openvino_graphs import OpenVinoBackend
from engine.runner import SequenceInput
from speculators.draft_model.checkpoint import EMBEDDING, OUTPUT, save_draft
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import read_tensors
from tests.drafters import SPECULATIONS, VARIANT, TinyDrafters, opened
from tests.tiny import MAX_LENGTH, THREADS

pytestmark = pytest.mark.torch


def compiled(
    drafters: TinyDrafters,
    speculation: AnySpeculation,
    directory: Path,
    target: str = VARIANT,
    **changes: Any,
) -> str:
    """Compile and return the last line that was reported."""
    lines = [""]
    settings = {"precision": "int8", "max_sequence_length": MAX_LENGTH, **changes}
    compile_speculator(
        speculation, directory, target=drafters.targets.source(target), report=lines.append, **settings
    )
    return lines[-1]


def open_it(
    drafters: TinyDrafters, speculation: AnySpeculation, directory: Path, target: str = VARIANT
) -> None:
    opened(speculation, directory, drafters.targets.runner(target, "int8"), slots=2)


@pytest.mark.parametrize("name", SPECULATIONS)
def test_what_is_there_already_is_not_compiled_again(
    name: str, tiny_drafters: TinyDrafters, tmp_path: Path
) -> None:
    speculation, directory = tiny_drafters.speculation(name, "int8", planted=False), tmp_path / "compiled"
    assert not compiled(tiny_drafters, speculation, directory).endswith("up to date")
    assert compiled(tiny_drafters, speculation, directory).endswith("up to date")
    open_it(tiny_drafters, speculation, directory)


@pytest.mark.parametrize("change", ["checkpoint", "target", "precision", "damage"])
def test_whatever_changes_is_compiled_again(change: str, tiny_drafters: TinyDrafters, tmp_path: Path) -> None:
    directory, checkpoint = tmp_path / "compiled", tmp_path / "checkpoint"
    random = tiny_drafters.speculation("medusa, tree", "int8", planted=False)
    assert isinstance(random, Medusa)
    shutil.copytree(random.checkpoint, checkpoint)
    speculation = Medusa(method="medusa", checkpoint=checkpoint)
    compiled(tiny_drafters, speculation, directory)
    target, changes = VARIANT, {}
    if change == "checkpoint":
        path = checkpoint / "medusa_lm_head.safetensors"
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
    elif change == "target":
        target = "llama"
    elif change == "precision":
        changes = {"precision": "fp32"}
    else:
        path = directory / "heads.onnx.data"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert not compiled(tiny_drafters, speculation, directory, target, **changes).endswith("up to date")
    assert compiled(tiny_drafters, speculation, directory, target, **changes).endswith("up to date")


def test_graphs_of_another_target_or_method_are_refused(tiny_drafters: TinyDrafters, tmp_path: Path) -> None:
    speculation = tiny_drafters.speculation("medusa, tree", "int8", planted=False)
    other = tiny_drafters.speculation("mlp_speculator, chain", "int8", planted=False)
    compiled(tiny_drafters, speculation, tmp_path / "compiled", "llama")
    with pytest.raises(EngineError, match=r"was compiled with the target llama of hash \w{12}, this one is"):
        open_it(tiny_drafters, speculation, tmp_path / "compiled")
    with pytest.raises(
        EngineError, match="is a speculator of method medusa, the spec asks for mlp_speculator"
    ):
        open_it(tiny_drafters, other, tmp_path / "compiled", "llama")
    with pytest.raises(EngineError, match=r"holds no compiled speculator \(speculator.json is missing\)"):
        open_it(tiny_drafters, speculation, tmp_path / "nothing")
    (tmp_path / "compiled" / "heads.onnx").unlink()
    with pytest.raises(EngineError, match=r"heads.onnx is missing; run `drafthouse build` again"):
        open_it(tiny_drafters, speculation, tmp_path / "compiled", "llama")


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("medusa, tree", "num_heads", r"draft tokens in a row, but .* gives 4"),
        ("mlp_speculator, chain", "draft_length", "asks for 9 draft tokens in a row, but .* gives 3"),
        ("mlp_speculator, tree", "draft_length", "asks for 9 draft tokens in a row, but .* gives 3"),
    ],
)
def test_more_levels_than_the_checkpoint_has_are_refused(
    name: str, key: str, message: str, tiny_drafters: TinyDrafters, tmp_path: Path
) -> None:
    speculation = tiny_drafters.speculation(name, "int8", planted=False)
    compiled(tiny_drafters, speculation, tmp_path)
    with pytest.raises(EngineError, match=message):
        open_it(tiny_drafters, speculation.model_copy(update={key: 9}), tmp_path)


@pytest.mark.parametrize(
    "name", ["mlp_speculator, chain", "medusa, tree", "eagle, tree", "eagle3, chain", "peagle, chain"]
)
def test_checkpoints_of_another_target_are_refused(
    name: str, tiny_drafters: TinyDrafters, tmp_path: Path
) -> None:
    speculation = tiny_drafters.speculation(name, "int8", planted=False)
    with pytest.raises(
        CheckpointError, match=r"is of another target: .* 64, the target's hidden_size is 576"
    ):
        compiled(tiny_drafters, speculation, tmp_path / "compiled", "full size")
    assert not (tmp_path / "compiled").exists()


def test_eagle3_says_which_layers_it_can_read(tiny_drafters: TinyDrafters, tmp_path: Path) -> None:
    speculation = tiny_drafters.speculation("eagle3, chain", "int8", planted=False)
    assert isinstance(speculation, Eagle3)
    compiled(tiny_drafters, speculation, tmp_path / "default")
    assert load_speculator_manifest(tmp_path / "default").hidden_layers == (2, 4, 5)
    named = speculation.model_copy(update={"layers_to_capture": (0, 2, 6)})
    compiled(tiny_drafters, named, tmp_path / "named")
    assert load_speculator_manifest(tmp_path / "named").hidden_layers == (1, 3, 7)
    for layers in ((0, 2), (0, 2, 7)):
        wrong = speculation.model_copy(update={"layers_to_capture": layers})
        with pytest.raises(CheckpointError, match="reads 3 layers of its target, which has 8"):
            compiled(tiny_drafters, wrong, tmp_path / "wrong")


def _eagle3_with(drafters: TinyDrafters, path: Path, tensors: dict[str, Any], **keys: Any) -> Any:
    return _eagle_with(drafters, "eagle3, chain", path, tensors, **keys)


def _eagle_with(
    drafters: TinyDrafters, name: str, path: Path, tensors: dict[str, Any], **keys: Any
) -> Eagle | Eagle3:
    """A copy of a tiny drafter with other tensors (None: without one) and keys."""
    speculation = drafters.speculation(name, "int8", planted=False)
    assert isinstance(speculation, (Eagle, Eagle3))
    shutil.copytree(speculation.checkpoint, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | keys))
    whole = {**load_file(path / "model.safetensors"), **tensors}
    save_file(
        {name: values for name, values in whole.items() if values is not None}, path / "model.safetensors"
    )
    return speculation.model_copy(update={"checkpoint": path})


def test_an_embedding_of_eagle3_is_the_targets_or_said_to_be_another(
    tiny_drafters: TinyDrafters, tmp_path: Path
) -> None:
    theirs = tiny_drafters.targets.weights(VARIANT)["model.embed_tokens.weight"]
    noise = np.random.default_rng(0).normal(0, theirs.std(), theirs.shape).astype(np.float32)
    name = "embed_tokens.weight"
    for number, own in enumerate((theirs, theirs + 0.1 * noise)):  # as after 4-bit quantisation
        fitting = _eagle3_with(tiny_drafters, tmp_path / f"fitting{number}", {name: own})
        compiled(tiny_drafters, fitting, tmp_path / f"compiled{number}")
    for number, own in enumerate((noise, theirs[::-1].copy(), theirs * 3, np.zeros_like(theirs))):
        foreign = _eagle3_with(tiny_drafters, tmp_path / f"foreign{number}", {name: own})
        with pytest.raises(
            CheckpointError, match=r"embed_tokens\.weight is not the target's \(\d+% of its rows"
        ):
            compiled(tiny_drafters, foreign, tmp_path / "refused")
    trained = _eagle3_with(tiny_drafters, tmp_path / "trained", {name: noise}, embed_requires_grad=True)
    compiled(tiny_drafters, trained, tmp_path / "of its own")


def test_an_embedding_of_eagle_is_the_targets(tiny_drafters: TinyDrafters, tmp_path: Path) -> None:
    theirs = tiny_drafters.targets.weights(VARIANT)["model.embed_tokens.weight"]
    for name, own in (("fitting", theirs), ("foreign", theirs[::-1].copy())):
        tensors = {"embed_tokens.weight": own}
        speculation = _eagle_with(tiny_drafters, "eagle, tree", tmp_path / name, tensors)
        if name == "fitting":
            compiled(tiny_drafters, speculation, tmp_path / "compiled")
            continue
        with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is not the target's"):
            compiled(tiny_drafters, speculation, tmp_path / "refused")


def test_an_output_matrix_that_is_left_out_is_the_targets(
    tiny_drafters: TinyDrafters, tmp_path: Path
) -> None:
    full: dict[str, Any] = {"d2t": None, "t2d": None, "draft_vocab_size": None}
    keys = {"draft_vocab_size": 265}
    theirs = tiny_drafters.targets.weights(VARIANT)["lm_head.weight"]
    drafters = [
        _eagle3_with(tiny_drafters, tmp_path / name, {**full, "lm_head.weight": own}, **keys)
        for name, own in (("without", None), ("with", theirs))
    ]
    for speculation in drafters:
        compiled(tiny_drafters, speculation, tmp_path / f"compiled {speculation.checkpoint.name}")
    digests = [
        load_speculator_manifest(tmp_path / f"compiled {name}").graph_sha256 for name in ("without", "with")
    ]
    assert digests[0] == digests[1]


def test_a_draft_model_needs_the_tokenizer_of_its_target(tiny_drafters: TinyDrafters, tmp_path: Path) -> None:
    target, draft = tiny_drafters.targets.source(VARIANT), tmp_path / "draft"
    shutil.copytree(tiny_drafters.targets.source("llama"), draft)
    check_same_tokenizer(draft, target)
    content = json.loads((draft / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (draft / "tokenizer.json").write_text(json.dumps(content))
    speculation = DraftModel(method="draft_model", model=draft)
    with pytest.raises(TargetError, match="different tokenizers: 'a' has the id"):
        compiled(tiny_drafters, speculation, tmp_path / "compiled")
    (draft / "tokenizer.json").unlink()
    with pytest.raises(TargetError, match=r"tokenizer.json is missing"):
        compiled(tiny_drafters, speculation, tmp_path / "compiled")


def test_a_draft_model_of_another_vocabulary_is_refused(tiny_drafters: TinyDrafters, tmp_path: Path) -> None:
    speculation = tiny_drafters.speculation("draft_model, chain", "int8", planted=False)
    compiled(tiny_drafters, speculation, tmp_path)
    with pytest.raises(EngineError, match="knows 265 tokens, full-size knows 49152"):
        open_it(tiny_drafters, speculation, tmp_path, "full size")


def test_a_truncated_checkpoint_leaves_nothing_behind(tiny_drafters: TinyDrafters, tmp_path: Path) -> None:
    whole = tiny_drafters.speculation("mlp_speculator, chain", "int8", planted=False)
    assert isinstance(whole, MlpSpeculator)
    checkpoint = Path(shutil.copytree(whole.checkpoint, tmp_path / "checkpoint"))
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        compiled(tiny_drafters, whole.model_copy(update={"checkpoint": checkpoint}), tmp_path / "compiled")
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_methods_of_tensorrt_llm_are_named(tiny_drafters: TinyDrafters, tmp_path: Path) -> None:
    speculation = Redrafter(method="redrafter", checkpoint=tmp_path)
    with pytest.raises(EngineError, match="redrafter runs on TensorRT-LLM, not on the embedded engine"):
        compiled(tiny_drafters, speculation, tmp_path / "compiled")


def test_a_distilled_draft_is_completed_from_its_target(tiny_drafters: TinyDrafters, tmp_path: Path) -> None:
    """What it shares with the target is not in its checkpoint, and it drafts in its own vocabulary alone."""
    whole = tiny_drafters.speculation("draft_model, chain", "int8", planted=True)
    assert isinstance(whole, DraftModel)
    draft = tmp_path / "draft"
    draft.mkdir()
    kept = np.arange(20, 220)
    tensors = read_tensors(whole.model / "model.safetensors", lambda name: name not in (EMBEDDING, OUTPUT))
    save_draft(json.loads((whole.model / "config.json").read_text()), tensors, kept, draft)
    speculation = DraftModel(method="draft_model", model=draft)
    assert not compiled(tiny_drafters, speculation, tmp_path / "compiled").endswith("up to date")
    assert compiled(tiny_drafters, speculation, tmp_path / "compiled").endswith("up to date")
    backend, blocks = OpenVinoBackend(THREADS), range(4)
    tokens = np.random.default_rng(0).integers(0, 265, 60).tolist()
    found = []
    for directory, outputs in (
        (tiny_drafters.directory("draft_model, chain", "int8", planted=True), "logits"),
        (tmp_path / "compiled", "candidates"),
    ):
        graph = backend.paged(
            directory / "model.onnx",
            load_manifest(directory),
            outputs=[outputs],
            num_blocks=4,
            branch_blocks=0,
        )
        graph.forward([SequenceInput(tokens, 0, blocks, is_prompt=True)])
        found.append(graph.output(outputs).copy())
    logits, candidates = found
    np.testing.assert_array_equal(candidates[:, 0], kept[logits[:, kept].argmax(axis=1)])
    assert (logits.argmax(axis=1) != candidates[:, 0]).any()
