"""Training from a checkpoint begins with what that drafts, keeps what it fixes, and says where it came from."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file, save_file  # noqa: E402

from deployments.training import TrainingSpec  # noqa: E402
from speculators.formats.errors import CheckpointError  # noqa: E402
from speculators.training.errors import TrainingError  # noqa: E402
from speculators.training.records import Evaluation, Started  # noqa: E402
from speculators.training.run import Job, check_places, train  # noqa: E402
from tests.speculators.training.processes import Run  # noqa: E402
from tests.speculators.training.samples import ignore  # noqa: E402

pytestmark = pytest.mark.torch

CheckpointOf = Callable[[str], Path]

METHODS = ("eagle3", "peagle", "mlp_speculator", "medusa", "draft_model")
SHORT = {"epochs": 1, "batch_tokens": 2048}  # some steps
STANDING_STILL = {"learning_rate": 1e-30}


def run(job: Job, **how: bool) -> list[Any]:
    records: list[Any] = []
    train(job, ignore, records.append, **how)
    return records


def evaluations(records: list[Any]) -> list[Evaluation]:
    return [record for record in records if isinstance(record, Evaluation)]


def weights(checkpoint: Path) -> dict[str, Any]:
    files = sorted(checkpoint.glob("*.safetensors"))
    return {name: values for file in files for name, values in load_file(file).items()}


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def claims(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((job.checkpoint / "training.json").read_text())
    return content


@pytest.mark.parametrize("method", METHODS)
def test_it_begins_with_what_the_checkpoint_drafts(make_job: Any, method: str) -> None:
    """Its weights are those of the checkpoint, bit for bit, and so is its acceptance; a step moves both."""
    first = make_job(method, epochs=2, learning_rate=3e-3)
    trained = evaluations(run(first))[-1]
    still = make_job(method, "still", from_pretrained=first.checkpoint, **SHORT, **STANDING_STILL)
    began, *_, ended = evaluations(run(still))
    # What was evaluated last had not been rounded to the checkpoint's bfloat16 yet.
    assert began.step == 0 and began.length == pytest.approx(trained.length, rel=0.02)
    assert (began.length, began.by_position) == (ended.length, ended.by_position)
    assert same(weights(still.checkpoint), weights(first.checkpoint))
    assert claims(still)["settings"] == {**claims(first)["settings"], "batch_tokens": 2048, **STANDING_STILL}
    moved = make_job(method, "moved", from_pretrained=first.checkpoint, **SHORT, learning_rate=3e-3)
    began_too, *_ = evaluations(run(moved))
    assert (began_too.length, began_too.by_position) == (began.length, began.by_position)
    assert not same(weights(moved.checkpoint), weights(first.checkpoint))


def test_peagle_begins_with_an_eagle3_drafter(make_job: Any, checkpoint_of: CheckpointOf) -> None:
    """Its layer is the first one; those behind it, and what stands behind masks, have to be learned."""
    how = {"from_pretrained": checkpoint_of("eagle3"), "drafter_layers": 3}
    still = make_job("peagle", "still", **how, **SHORT, **STANDING_STILL)
    run(still)
    found = weights(still.checkpoint)
    shared = {
        name.replace("midlayer.", "layers.0."): values
        for name, values in weights(checkpoint_of("eagle3")).items()
    }
    assert same({name: found[name] for name in shared}, shared)
    config = json.loads((still.checkpoint / "config.json").read_text())
    assert config["num_hidden_layers"] == 3 and "mask_hidden" in found


def test_a_peagle_drafter_without_its_mask_is_not_taken_for_an_eagle3_one(
    make_job: Any, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """As SpecForge names one: by its class alone."""
    start = tmp_path / "start"
    shutil.copytree(checkpoint_of("peagle"), start)
    config = json.loads((start / "config.json").read_text())
    others = {key: value for key, value in config.items() if key not in ("mask_token_id", "ptd_token_id")}
    (start / "config.json").write_text(json.dumps({**others, "architectures": ["PEagleDraftModel"]}))
    job = make_job("peagle", from_pretrained=start, **SHORT)
    with pytest.raises(CheckpointError, match="key 'mask_token_id' is missing"):
        run(job)


def test_what_the_checkpoint_fixes_need_not_be_said(make_job: Any) -> None:
    """Of other data, where other tokens are frequent; nothing of the section is what the checkpoint is."""
    first = make_job("medusa", **SHORT, depth=2, medusa_blocks=2, draft_vocab_size=50)
    run(first)
    job = make_job("medusa", "further", from_pretrained=first.checkpoint, **SHORT)
    said = job.training.model_dump(exclude_unset=True, exclude={"depth", "draft_vocab_size"})
    job = dataclasses.replace(job, training=TrainingSpec.model_validate(said))
    path = job.training.directory / "samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:64]))
    run(job)
    found, theirs = claims(job), claims(first)
    for key in ("depth", "medusa_blocks", "draft_vocab_size"):
        assert found["settings"][key] == theirs["settings"][key] != getattr(job.training, key)
    assert torch.equal(*(weights(each.checkpoint)["token_map"] for each in (job, first)))
    anew = make_job("medusa", "anew", **SHORT, depth=2, medusa_blocks=2, draft_vocab_size=50)
    shutil.copy(path, anew.training.directory / "samples.jsonl")
    run(anew)
    assert not torch.equal(*(weights(each.checkpoint)["token_map"] for each in (anew, first)))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "eagle3",
            {"draft_vocab_size": 100},
            r"draft_vocab_size is 100, but \S+ has 200; .*leave out draft_vocab_size",
        ),
        ("eagle3", {"layers": [0, 1, 1]}, r"layers is \[0, 1, 1\], but \S+ has \[2, 1, 0\]"),
        ("peagle", {"drafter_layers": 1}, "drafter_layers is 1, but .* has 2"),
        ("mlp_speculator", {"depth": 2}, "depth is 2, but .* has 3"),
        ("mlp_speculator", {"inputs": "state"}, "inputs is state, but .* has both"),
        (
            "medusa",
            {"depth": 2, "medusa_blocks": 2},
            "depth is 2, but .* has 3 and .*medusa_blocks is 2, but .* has 1",
        ),
        ("draft_model", {"keep_layers": [0]}, r"keep_layers is \[0\], but \S+ has \[0, 1\]"),
    ],
)
def test_a_section_that_contradicts_the_checkpoint_is_refused(
    make_job: Any, checkpoint_of: CheckpointOf, method: str, settings: dict[str, Any], message: str
) -> None:
    job = make_job(method, from_pretrained=checkpoint_of(method), **{**SHORT, **settings})
    with pytest.raises(TrainingError, match=message):
        run(job)
    assert not job.checkpoint.exists()
    assert not list(job.training.directory.glob(f"{method}-*"))


def other_file(directory: Path) -> None:
    (directory / "config.json").unlink()


def other_width(directory: Path) -> None:
    change_config(directory, target_hidden_size=48)
    tensors = load_file(directory / "model.safetensors")
    tensors["fc.weight"] = tensors["fc.weight"][:, : 3 * 48].clone()
    save_file(tensors, directory / "model.safetensors")


def cut(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def change_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "from_pretrained: .* is no directory"),
        (other_file, r"config\.json"),
        (cut, r"model\.safetensors"),
        (other_width, "of another target: width of the features is 48, the target's hidden_size is 64"),
        (lambda directory: change_config(directory, vocab_size=266), "266"),
    ],
)
def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused(
    make_job: Any, checkpoint_of: CheckpointOf, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    start = tmp_path / "start"
    shutil.copytree(checkpoint_of("eagle3"), start)
    spoil(start)
    job = make_job("eagle3", from_pretrained=start, **SHORT)
    with pytest.raises((TrainingError, CheckpointError), match=message):
        run(job)
    assert not job.checkpoint.exists()


def test_the_result_does_not_replace_what_it_was_made_from(
    make_job: Any, checkpoint_of: CheckpointOf
) -> None:
    job = make_job("medusa", **SHORT)
    shutil.copytree(checkpoint_of("medusa"), job.checkpoint)
    before = weights(job.checkpoint)
    job = make_job("medusa", **SHORT, from_pretrained=job.checkpoint.parent / "." / job.checkpoint.name)
    for how in (False, True):
        with pytest.raises(TrainingError, match=r"is where the result goes.*training\.checkpoint"):
            check_places(job, replace=how)
        with pytest.raises(TrainingError, match="is where the result goes"):
            run(job, replace=how)
    assert same(weights(job.checkpoint), before)


def test_a_run_is_that_of_its_start(make_job: Any, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(checkpoint_of("medusa"), start)
    job = make_job("medusa", **SHORT, from_pretrained=start)
    run(job)
    assert claims(job)["start"]["name"] == "start"
    (start / "training.json").unlink()  # notes are no weights
    (again,) = [record for record in run(job) if isinstance(record, Started)]
    assert again.step == again.steps
    heads = load_file(start / "medusa_lm_head.safetensors")
    heads["0.0.linear.bias"] += 0.25
    save_file(heads, start / "medusa_lm_head.safetensors")
    with pytest.raises(TrainingError, match=r"other settings \(start\.sha256 \w+, not \w+\)"):
        run(job)
    with pytest.raises(TrainingError, match=r"start\.sha256 .*, not None"):
        run(make_job("medusa", **SHORT))


def test_a_run_from_nothing_is_named_as_ever(checkpoint_of: CheckpointOf) -> None:
    """What was begun before there was the key is still taken up: its `run.json` has these keys and no others."""
    begun = json.loads((checkpoint_of("medusa").parent / "run" / "medusa-outputs" / "run.json").read_text())
    assert begun.keys() == {"method", "target", "samples", "settings", "epochs", "processes"}
    common = {"depth", "labels", "batch_tokens", "accumulation", "optimizer", "learning_rate", "seed"}
    assert begun["settings"].keys() == common | {"mixed_precision", "draft_vocab_size", "medusa_blocks"}


@pytest.mark.parametrize("method", ["eagle3", "draft_model"])
def test_kills_do_not_change_the_weights(make_job: Any, checkpoint_of: CheckpointOf, method: str) -> None:
    settings = {"epochs": 1, "batch_tokens": 512, "save_every": 3, "evaluate_every": 100}
    whole, killed = (
        make_job(method, name, from_pretrained=checkpoint_of(method), **settings)
        for name in ("whole", "killed")
    )
    Run(whole).finish()
    for step in (2, 5):
        Run(killed).kill_after(step)
        assert not killed.checkpoint.exists()
    Run(killed).finish()
    assert same(weights(killed.checkpoint), weights(whole.checkpoint))
    assert not same(weights(killed.checkpoint), weights(checkpoint_of(method)))
    records = (killed.training.directory / f"{method}-outputs" / "records.jsonl").read_text()
    assert records.count('"step": 0,') == 1
