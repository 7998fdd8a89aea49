"""A run is taken up with its own settings only, no other run's checkpoint is replaced, and no claim is untrue."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402

from deployments.files.directories import ForeignDirectoryError  # noqa: E402
from speculators.data.errors import DataError  # noqa: E402
from speculators.training.errors import TrainingError  # noqa: E402
from speculators.training.records import Started  # noqa: E402
from speculators.training.run import Job, check_places, kept, train  # noqa: E402
from tests.speculators.training.samples import ignore  # noqa: E402

pytestmark = pytest.mark.torch


def run(job: Job, **how: bool) -> list[Started]:
    records: list[Any] = []
    train(job, ignore, records.append, **how)
    return [record for record in records if isinstance(record, Started)]


def claims(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((job.checkpoint / "training.json").read_text())
    return content


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SHIPPED = Path("speculators/weights/smollm2-135m").absolute()
SHORT = {"epochs": 1, "batch_tokens": 2048}  # some steps
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 0.01}, r"learning_rate 0\.001, not 0\.01"),
    ({"epochs": 2}, "epochs.outputs 1, not 2"),
    ({"seed": 1}, "seed 0, not 1"),
    ({"labels": "hard"}, "labels soft, not hard"),
    ({"medusa_blocks": 2}, "medusa_blocks 1, not 2"),
    ({"depth": 2}, "depth 3, not 2"),
    ({"draft_vocab_size": 100}, "draft_vocab_size 200, not 100"),
    ({"batch_tokens": 512}, "batch_tokens 2048, not 512"),
    ({"optimizer": "muon"}, "optimizer adamw, not muon"),
    ({"data": {"max_sample_tokens": 31}}, "samples"),
]


def test_changed_settings_are_refused(make_job: Any) -> None:
    job = make_job("medusa", **SHORT)
    run(job)
    before = tree(job.checkpoint.parent)
    for change, told in CHANGES:
        with pytest.raises((TrainingError, DataError), match=told):
            run(make_job("medusa", **{**SHORT, **change}))
        assert tree(job.checkpoint.parent) == before


def test_settings_that_decide_nothing_may_change(make_job: Any) -> None:
    job = make_job("medusa", **SHORT, save_every=10)
    (first,) = run(job)
    again = make_job("medusa", **SHORT, save_every=7, evaluate_every=3, unroll=1, keep_layers=[0])
    (second,) = run(again)
    assert (first.step, second.step, second.steps) == (0, first.steps, first.steps)


def test_more_samples_begin_anew(make_job: Any) -> None:
    job = make_job("medusa", **SHORT, features="online")
    path = job.training.directory / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-20]))
    run(job)
    path.write_text("".join(lines))
    with pytest.raises(TrainingError, match=r"samples\.count \d+, not \d+.*--fresh"):
        run(job)
    (started,) = run(job, fresh=True, replace=True)
    assert started.step == 0


def test_a_fresh_run_keeps_the_earlier_one(make_job: Any) -> None:
    job = make_job("medusa", **SHORT)
    run(job)
    records = (job.training.directory / "medusa-outputs" / "records.jsonl").read_bytes()
    other = make_job("medusa", **SHORT, learning_rate=0.01)
    with pytest.raises(TrainingError, match="holds a checkpoint of another run"):
        run(other, fresh=True)
    (started,) = run(other, fresh=True, replace=True)
    assert started.step == 0
    assert (job.training.directory / "medusa-outputs.1" / "records.jsonl").read_bytes() == records
    assert claims(other)["settings"]["learning_rate"] == 0.01


def test_the_step_that_a_run_resumes_from_is_told(make_job: Any) -> None:
    job = make_job("mlp_speculator", epochs=1, save_every=4)

    class Enough(Exception):
        pass

    def stop(record: Any) -> None:
        if getattr(record, "loss", None) is not None and record.step == 6:
            raise Enough

    with pytest.raises(Enough):
        train(job, ignore, stop)
    assert "the state of mlp_speculator-inputs after step 4" in kept(job)
    assert not job.checkpoint.exists()
    first, second = run(job)
    assert (first.run, first.step) == ("mlp_speculator-inputs", 4)
    assert (second.run, second.step) == ("mlp_speculator-outputs", 0)


@pytest.mark.parametrize("replace", [False, True])
def test_another_run_s_checkpoint_is_replaced_only_when_asked(make_job: Any, replace: bool) -> None:
    """As when an example's weights are trained again: the place holds somebody's work."""
    theirs, ours = make_job("medusa", "theirs", **SHORT), make_job("medusa", "ours", **SHORT, seed=4)
    run(theirs)
    shutil.copytree(theirs.checkpoint, ours.checkpoint)
    before = tree(ours.checkpoint)
    if not replace:
        with pytest.raises(TrainingError, match=r"another run \(medusa, acceptance length .*--replace"):
            check_places(ours)
        with pytest.raises(TrainingError, match="another run"):
            run(ours)
        assert tree(ours.checkpoint) == before
        return
    run(ours, replace=True)
    assert tree(ours.checkpoint) != before
    run(ours)  # its own by now


@pytest.mark.parametrize("replace", [False, True])
def test_what_no_run_has_made_is_never_replaced(make_job: Any, replace: bool) -> None:
    job = make_job("medusa", **SHORT)
    job.checkpoint.mkdir()
    (job.checkpoint / "thesis.txt").write_text("years of work")
    with pytest.raises(ForeignDirectoryError, match=r"holds files and no training\.json"):
        check_places(job, replace=replace)
    with pytest.raises(ForeignDirectoryError):
        run(job, replace=replace)
    assert [path.name for path in job.checkpoint.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("method", ["draft_model", "eagle3", "medusa", "mlp_speculator"])
def test_a_checkpoint_that_was_trained_before_files_were_listed_is_the_kit_s(
    make_job: Any, method: str
) -> None:
    """The repository's own are such; what somebody else has put beside one, or wrote in its place, is not touched."""
    job = make_job("medusa", **SHORT)
    shutil.copytree(SHIPPED / method, job.checkpoint)
    with pytest.raises(TrainingError, match=rf"another run \({method}, acceptance length .*--replace"):
        check_places(job)
    (job.checkpoint / "notes.txt").write_text("years of work")
    with pytest.raises(ForeignDirectoryError, match=r"holds notes\.txt, which drafthouse has not put there"):
        check_places(job, replace=True)
    (job.checkpoint / "notes.txt").unlink()
    if method == "medusa":
        run(job, replace=True)
        assert "run" in claims(job) and not (job.checkpoint / "curves.png").exists()
        return
    check_places(job, replace=True)
    (job.checkpoint / "training.json").write_text(json.dumps({"method": "mine", "versions": {}}))
    with pytest.raises(ForeignDirectoryError, match="was not made by drafthouse"):
        check_places(job, replace=True)


def test_the_record_claims_what_was_done(make_job: Any) -> None:
    job = make_job("eagle3", epochs=2, batch_tokens=2048, unroll=9, draft_vocab_size=9999, keep_layers=[0])
    (started,) = run(job)
    found = claims(job)
    assert found["settings"]["unroll"] == 3  # no more depths than are measured
    assert found["settings"]["draft_vocab_size"] == 265
    assert found["settings"]["layers"] == [2, 1, 0]
    assert not {"keep_layers", "medusa_blocks", "inputs"} & found["settings"].keys()
    assert found["epochs"] == {"outputs": 2}
    assert found["stages_done"]["eagle3-outputs"]["steps"] == started.steps
    head = load_file(job.checkpoint / "model.safetensors")["lm_head.weight"]
    assert len(head) == found["settings"]["draft_vocab_size"]


def test_samples_that_were_asked_for_otherwise_are_refused(make_job: Any) -> None:
    job = make_job("medusa", **SHORT)
    target = job.training.directory / "target.json"
    owner = json.loads(target.read_text())
    target.write_text(json.dumps({**owner, "data": {"greedy": 0.1, "temperature": 0.8}}))
    with pytest.raises(DataError, match=r"written with greedy 0\.1, not 0\.7"):
        run(job)
