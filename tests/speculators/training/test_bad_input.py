"""What cannot be trained is told, and leaves nothing half-written."""

import json
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from speculators.data.errors import DataError  # noqa: E402
from speculators.data.samples import Sample, SampleFile  # noqa: E402
from speculators.training.errors import TrainingError  # noqa: E402
from speculators.training.run import Job, train  # noqa: E402
from tests.speculators.training.samples import ignore  # noqa: E402

pytestmark = pytest.mark.torch


def run(job: Job) -> None:
    train(job, ignore, ignore)


def break_samples(change: Callable[[list[str]], list[str]]) -> Callable[[Job], None]:
    def apply(job: Job) -> None:
        path = job.training.directory / "samples.jsonl"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return apply


def foreign_target(job: Job) -> None:
    (job.training.directory / "target.json").write_text(json.dumps({"name": "other", "sha256": "0"}))


def foreign_tokens(job: Job) -> None:
    list(
        SampleFile(job.training.directory / "samples.jsonl").append(
            iter([Sample(999, "x", (), [1, 99_999], [(1, 2)])])
        )
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_samples(lambda lines: []), "0 samples to learn from"),
        (
            break_samples(lambda lines: [*lines[:3], lines[3][:20] + "\n", *lines[4:]]),
            r"samples.jsonl:4: not a sample",
        ),
        (foreign_target, "were written by other"),
        (foreign_tokens, "sample 999 has tokens beyond"),
        (lambda job: (job.training.directory / "target.json").unlink(), "says which target wrote"),
    ],
)
def test_bad_data(make_job: Any, spoil: Callable[[Job], None], message: str) -> None:
    job = make_job("medusa")
    spoil(job)
    with pytest.raises(DataError, match=message):
        run(job)
    assert not job.checkpoint.exists()


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("anpd", {}, "anpd has nothing to train; these have: eagle3"),
        ("eagle3", {"layers": [0, 1, 9]}, r"\[0, 1, 9\]; the target has hidden states 0 to 2"),
        ("draft_model", {"keep_layers": [0, 7]}, r"\[0, 7\]; the target has layers 0 to 1"),
        ("medusa", {"accumulation": 10_000}, "make no step of 10000 micro-batches"),
    ],
)
def test_bad_settings(make_job: Any, method: str, settings: dict[str, Any], message: str) -> None:
    job = make_job(method, **settings)
    with pytest.raises(TrainingError, match=message):
        run(job)
    assert not job.checkpoint.exists()


def test_hidden_states_of_other_data_are_refused(make_job: Any) -> None:
    job = make_job("medusa", epochs=1)
    run(job)
    break_samples(lambda lines: lines[1:])(job)
    with pytest.raises(TrainingError, match="hidden states of another target or other data"):
        run(job)


def test_a_cut_cache_is_told(make_job: Any) -> None:
    job = make_job("medusa", epochs=1)
    run(job)
    states = job.training.directory / "features" / "states.bin"
    states.write_bytes(states.read_bytes()[:-2])
    with pytest.raises(TrainingError, match="is shorter than"):
        run(job)


def test_a_damaged_state_is_told(make_job: Any) -> None:
    job = make_job("medusa", epochs=1)
    run(job)
    (state,) = (job.training.directory / "medusa-outputs").glob("state-*")
    (state / "model.safetensors").write_bytes(b"x")
    with pytest.raises(TrainingError, match="does not fit this run or is damaged"):
        run(job)


def test_a_full_disk_is_told_and_the_old_checkpoint_stays(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("medusa", epochs=1)
    run(job)
    before = (job.checkpoint / "training.json").read_bytes()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speculators.formats.tensors.save_file", full)
    with pytest.raises(TrainingError, match="No space left"):
        run(job)
    assert (job.checkpoint / "training.json").read_bytes() == before
    assert [path.name for path in job.checkpoint.parent.glob(".run-checkpoint.*")] == []
