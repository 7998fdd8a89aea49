"""Sample files: what was written is read, kills are survived, damage is told."""

from pathlib import Path

import pytest

from speculators.data.errors import DataError
from speculators.data.samples import Sample, SampleFile, content_hash, read_samples

SAMPLES = [
    Sample(3, "math", [{"role": "user", "content": "1+1?"}], [1, 5, 9, 2], [(2, 4)], greedy=True),
    Sample(1, "qa", refused="overlap"),
    Sample(4, "qa", [{"role": "user", "content": "é"}], [1, 7, 7, 8], [(1, 2), (3, 4)]),
]


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = SampleFile(tmp_path / "samples.jsonl")
    assert list(file.append(iter(SAMPLES))) == SAMPLES
    assert list(read_samples(file.path)) == SAMPLES
    again = SampleFile(file.path)
    assert (again.done, again.num_written) == ({1, 3, 4}, 4)


def test_a_line_that_was_cut_short_is_dropped_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    list(SampleFile(path).append(iter(SAMPLES)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    file = SampleFile(path)
    assert file.done == {1, 3}
    list(file.append(iter(SAMPLES[2:])))
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        '{"id": 1',
        '{"id": 1, "category": "x"}',
        '{"id": 1, "category": "x", "tokens": [1], "written": [[0, 2]]}',
        "[]",
    ],
)
def test_damage_is_told_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(SAMPLES[0].line() + line + "\n")
    with pytest.raises(DataError, match=r"samples.jsonl:2: "):
        SampleFile(path)


def test_the_hash_is_that_of_the_content() -> None:
    usable = [SAMPLES[0], SAMPLES[2]]
    assert content_hash(usable) == content_hash(usable[::-1])
    changed = Sample(4, "qa", SAMPLES[2].messages, [1, 7, 7, 9], SAMPLES[2].written)
    assert content_hash(usable) != content_hash([SAMPLES[0], changed])
