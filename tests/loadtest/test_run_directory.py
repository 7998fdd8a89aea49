from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.records import RecordError
from loadtest.run_directory import RunDirectory, RunDirectoryError
from loadtest.servers import Server
from loadtest.settings import Slo, SweepSettings
from loadtest.summary import summarise
from loadtest.sweep import run_sweep
from tests.loadtest.synthetic import simulate_sweep

SETTINGS = SweepSettings(concurrency=(1,), rounds=1, max_tokens=4, requests=2)


def test_missing_cells_come_with_their_warmup(tmp_path: Path) -> None:
    directory = simulate_sweep(tmp_path, SETTINGS, cells=3)
    assert [cell.name for cell in directory.missing()] == [
        "000-c1-none",
        "001-c1-speculative",
        "003-c1-speculative",
    ]
    assert simulate_sweep(tmp_path, SETTINGS).missing() == ()


def test_the_same_sweep_is_taken_up_again(tmp_path: Path) -> None:
    simulate_sweep(tmp_path, SETTINGS, cells=3)
    directory = RunDirectory(tmp_path)
    directory.begin(SETTINGS.model_copy(update={"slo": Slo(ttft=5)}), {})
    assert len(directory.finished()) == 1
    assert directory.read_settings().slo.ttft == 5


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    simulate_sweep(tmp_path, SETTINGS, cells=3)
    with pytest.raises(RunDirectoryError, match=r"different: max_tokens, seed"):
        RunDirectory(tmp_path).begin(SETTINGS.model_copy(update={"max_tokens": 5, "seed": 3}), {})


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="not empty and not a sweep"):
        RunDirectory(tmp_path).begin(SETTINGS, {})
    with pytest.raises(RunDirectoryError, match=r"no sweep\.json"):
        RunDirectory(tmp_path).read_settings()


@pytest.mark.parametrize("content", ['{"method": "bayes"}', "[1]", "not JSON", '{"settings": {}}'])
def test_somebody_elses_sweep_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    """`sweep.json` is a name that others give, too."""
    (tmp_path / "cells" / "theirs").mkdir(parents=True)
    (tmp_path / "servers.json").write_text("theirs")
    (tmp_path / "sweep.json").write_text(content)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for use in (lambda: run_sweep(SETTINGS, tmp_path), lambda: RunDirectory(tmp_path).begin(SETTINGS, {})):
        with pytest.raises(RunDirectoryError, match=r"sweep\.json is not that of a load test"):
            use()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_is_refused_gets_no_file_of_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="not empty and not a sweep"):
        run_sweep(SETTINGS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_begun_sweep_that_came_to_nothing_may_become_another(tmp_path: Path) -> None:
    directory = simulate_sweep(tmp_path, SETTINGS, cells=0)
    directory.note_servers(servers("none", "speculative"))
    directory.begin(SETTINGS.model_copy(update={"seed": 3}), {})
    directory.note_servers(servers("speculative", "none"))
    assert directory.read_settings().seed == 3


def servers(*arms: str) -> list[Server]:
    return [Server(arm=arm, host=f"{arm}:8001", deployment=None, cache="off", salts=False) for arm in arms]


def test_lost_records_are_noticed(tmp_path: Path) -> None:
    directory = simulate_sweep(tmp_path, SETTINGS)
    file = directory.request_file("002-c1-none", "0")
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    with pytest.raises(RecordError, match="1 records, but the cell sent 2"):
        directory.finished()


def test_two_sweeps_do_not_share_a_directory(tmp_path: Path) -> None:
    directory = simulate_sweep(tmp_path, SETTINGS)
    with (
        directory.locked(),
        pytest.raises(RunDirectoryError, match="another process"),
        RunDirectory(tmp_path).locked(),
    ):
        pass


def test_a_sweep_in_its_first_cell_is_not_disturbed_by_another(tmp_path: Path) -> None:
    directory = simulate_sweep(tmp_path, SETTINGS, cells=0)
    directory.note_servers(servers("none", "speculative"))
    cell = directory.missing()[0]
    with directory.locked():
        directory.prepare_cell(cell)
        directory.request_file(cell.name, "0").write_text("half a rec")
        before = directory.sweep_file.read_bytes(), directory.servers_file.read_bytes()
        for asked in (SETTINGS, SETTINGS.model_copy(update={"seed": 3})):
            with pytest.raises(RunDirectoryError, match="another process is measuring"):
                run_sweep(asked, tmp_path)
        assert directory.request_file(cell.name, "0").read_text() == "half a rec"
        assert (directory.sweep_file.read_bytes(), directory.servers_file.read_bytes()) == before


def test_an_interrupted_cell_starts_afresh(tmp_path: Path) -> None:
    directory = simulate_sweep(tmp_path, SETTINGS, cells=3)
    cell = directory.missing()[-1]
    directory.prepare_cell(cell)
    directory.request_file(cell.name, "1").write_text("half a rec")
    directory.prepare_cell(cell)
    assert not directory.request_file(cell.name, "1").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("sweep.json", '{"digest": "d", "settings": {"arms": 3}, "provenance": {}}'),
        ("sweep.json", '{"digest": "d", "settings": [], "provenance": {}}'),
        ("servers.json", "{"),
        ("servers.json", "3"),
        ("servers.json", '[{"arm": "none", "address": "of an earlier release"}]'),
        ("cells/002-c1-none/cell.json", ""),
        ("cells/002-c1-none/cell.json", "[]"),
        ("cells/002-c1-none/cell.json", '{"name": "of an earlier release"}'),
    ],
)
def test_what_is_damaged_or_of_another_release_is_named(tmp_path: Path, file: str, content: str) -> None:
    simulate_sweep(tmp_path, SETTINGS)
    (tmp_path / file).write_text(content)
    with pytest.raises(RunDirectoryError, match=rf"{file} is damaged or of another release"):
        summarise(RunDirectory(tmp_path))
