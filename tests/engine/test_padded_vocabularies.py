"""Drafter and target of one tokenizer, padded differently, draft for each other as if they were not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from build.compile import compile_engine
from build.drafters import check_draft, compile_speculator
from build.targets.errors import TargetError
from deployments.speculation import AnySpeculation, DraftModel
from engine.drafters import prepare
from engine.manifest import load_manifest
from engine.request import GenerationRequest
from speculators.formats.errors import CheckpointError
from tests.drafters import VARIANT, TinyDrafters, layers_of, opened, planted_prompts
from tests.engine.driving import make_engine, plain, run
from tests.planted import VOCABULARY
from tests.runners import openvino_runner
from tests.tiny import MAX_LENGTH, NUM_BLOCKS, THREADS

pytestmark = pytest.mark.torch

PADDED = 272
NAMES = ("mlp_speculator, chain", "medusa, tree", "eagle, tree", "eagle3, tree", "draft_model, chain")
_BUILD = {"precision": "fp32", "max_sequence_length": MAX_LENGTH}


def padded(source: Path, directory: Path, size: int = PADDED) -> Path:
    """A copy of a model or checkpoint whose vocabulary has `size` rows; the new ones are noise."""
    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": size}))
    (path,) = directory.glob("*.safetensors")
    tensors = load_file(path)
    for name, values in tensors.items():
        if values.shape[0] == VOCABULARY:
            more = np.random.default_rng(3).normal(0, 0.01, (size - VOCABULARY, *values.shape[1:]))
            drafted = values.dtype == np.bool_  # the map of EAGLE-3; none of the new ones is
            tensors[name] = np.concatenate([values, (0 * more if drafted else more).astype(values.dtype)])
    save_file(tensors, path)
    return directory


def with_checkpoint(speculation: AnySpeculation, path: Path) -> AnySpeculation:
    key = "model" if isinstance(speculation, DraftModel) else "checkpoint"
    return speculation.model_copy(update={key: path})


def checkpoint_of(speculation: AnySpeculation) -> Path:
    return Path(getattr(speculation, "model", None) or speculation.checkpoint)  # type: ignore[union-attr]


@pytest.mark.parametrize("larger", ["target", "drafter"])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str, larger: str, tiny_drafters: TinyDrafters, tmp_path: Path) -> None:
    target = tiny_drafters.targets.source(VARIANT)
    speculation = tiny_drafters.speculation(name, "fp32", planted=True)
    if larger == "target":
        target = padded(target, tmp_path / "target")
    else:
        speculation = with_checkpoint(speculation, padded(checkpoint_of(speculation), tmp_path / "drafter"))
    compile_engine(target, tmp_path / "engine", **_BUILD)  # type: ignore[arg-type]
    compile_speculator(speculation, tmp_path / "speculator", target=target, **_BUILD)  # type: ignore[arg-type]
    directory, manifest = tmp_path / "speculator", load_manifest(tmp_path / "engine")
    needs = prepare(speculation, directory, target=manifest, slots=8, max_sequence_length=MAX_LENGTH)
    runner = openvino_runner(
        tmp_path / "engine",
        num_blocks=NUM_BLOCKS,
        threads=THREADS,
        hidden_layers=layers_of(needs),
        branch_blocks=512,
    )
    speculators = opened(speculation, directory, runner, slots=8)
    engine = make_engine(runner, speculators, max_batch_size=8)
    last = manifest.vocab_size - 1
    requests = [GenerationRequest(prompt, 40) for prompt in planted_prompts()[:4]]
    requests.append(GenerationRequest((5, last, 9, last - 1), 20))  # ids that no text has
    found = [outcome.tokens for outcome in run(engine, requests)]
    assert found == [plain(runner, request) for request in requests]
    assert (engine.statistics.tokens_per_step or 0) > 1.3


@pytest.mark.parametrize("name", NAMES)
def test_vocabularies_that_lack_tokens_of_the_tokenizer_are_refused(
    name: str, tiny_drafters: TinyDrafters, tmp_path: Path
) -> None:
    speculation = tiny_drafters.speculation(name, "fp32", planted=False)
    target = padded(tiny_drafters.targets.source(VARIANT), tmp_path / "target")
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": VOCABULARY, "content": "<more>"})
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    if isinstance(speculation, DraftModel):
        draft = Path(shutil.copytree(speculation.model, tmp_path / "draft"))
        shutil.copyfile(target / "tokenizer.json", draft / "tokenizer.json")
        speculation = with_checkpoint(speculation, draft)
        with pytest.raises(TargetError, match=r"has 265 tokens, .* has 272, and their tokenizer has tokens"):
            check_draft(draft, target)
    with pytest.raises(
        (CheckpointError, TargetError), match=r"tokenizer has tokens that only one of them has"
    ):
        compile_speculator(speculation, tmp_path / "compiled", target=target, **_BUILD)  # type: ignore[arg-type]
    assert not (tmp_path / "compiled").exists()


def test_a_draft_engine_of_another_padding_is_compiled_again(
    tiny_drafters: TinyDrafters, tmp_path: Path
) -> None:
    target = tiny_drafters.targets.source(VARIANT)
    speculation = tiny_drafters.speculation("draft_model, chain", "fp32", planted=False)
    directory, sizes = tmp_path / "compiled", []
    for source in (target, padded(target, tmp_path / "target")):
        compile_speculator(speculation, directory, target=source, **_BUILD)  # type: ignore[arg-type]
        sizes.append(load_manifest(directory).vocab_size)
    assert sizes == [VOCABULARY, PADDED]
