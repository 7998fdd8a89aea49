"""Directories appear whole or not at all, whatever ends the process, and replace nothing but the kit's own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments.files import directories as files
from deployments.files.directories import (
    INVENTORY,
    DirectoryInUseError,
    ForeignDirectoryError,
    in_use,
    replace_directory,
    take_place,
)

ROOT = Path(__file__).parents[2]
MARK = "mark.json"


def write(path: Path, text: str) -> None:
    with replace_directory(path, MARK) as partial:
        (partial / MARK).write_text("{}")
        (partial / "weights").write_text(text)


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the kit's lists of its own."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != INVENTORY]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("at_once", [True, False])
def test_the_kit_s_own_is_replaced(at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not at_once:
        monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
    for text in ("old", "new"):
        write(tmp_path / "engine", text)
    assert tree(tmp_path) == {f"engine/{MARK}": b"{}", "engine/weights": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_this_system_exchanges_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    assert files._exchanged(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").is_file()


@pytest.mark.parametrize("content", [{"precious.txt": "x"}, {"deep/er/precious.txt": "x"}, {"engine": "x"}])
def test_what_is_not_the_kit_s_own_is_never_touched(content: dict[str, str], tmp_path: Path) -> None:
    for name, text in content.items():
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = tree(tmp_path)
    with pytest.raises(ForeignDirectoryError, match=r"holds files and no mark\.json"):
        write(tmp_path / "home", "new")
    assert tree(tmp_path) == before


def test_a_mark_of_somebody_else_is_none(tmp_path: Path) -> None:
    """Names such as training.json are taken by other programs, too."""
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / MARK).write_text('{"mine": true}')
    with pytest.raises(ForeignDirectoryError, match="was not made by drafthouse"):
        write(tmp_path / "engine", "new")
    assert tree(tmp_path) == {f"engine/{MARK}": b'{"mine": true}'}


@pytest.mark.parametrize("name", ["notes.txt", "my_model/config.pbtxt", "link", "__pycache__/notes.txt"])
def test_what_somebody_has_put_into_the_kit_s_own_is_kept(name: str, tmp_path: Path) -> None:
    write(tmp_path / "engine", "old")
    theirs = tmp_path / "engine" / name
    theirs.parent.mkdir(exist_ok=True)
    if name == "link":
        theirs.symlink_to(tmp_path)
    else:
        theirs.write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(ForeignDirectoryError, match=f"holds {name}, which drafthouse has not put there"):
        write(tmp_path / "engine", "new")
    assert tree(tmp_path) == before and os.path.lexists(theirs)


def test_what_python_keeps_of_modules_is_no_change(tmp_path: Path) -> None:
    """Triton's Python backend leaves it in every repository that it has served."""
    write(tmp_path / "engine", "old")
    cache = tmp_path / "engine" / "__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_text("x")
    before = (tmp_path / "engine").stat().st_ino
    write(tmp_path / "engine", "old")
    assert (tmp_path / "engine").stat().st_ino == before
    write(tmp_path / "engine", "new")
    assert tree(tmp_path) == {f"engine/{MARK}": b"{}", "engine/weights": b"new"}


def test_what_is_in_use_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PATIENCE_SECONDS", 0.05)
    write(tmp_path / "engine", "old")
    with in_use(tmp_path / "engine", tmp_path / "not-there"), in_use(tmp_path / "engine"):
        write(tmp_path / "engine", "old")  # the same again is no change
        with pytest.raises(DirectoryInUseError, match="is read by a running server"):
            write(tmp_path / "engine", "new")
        (tmp_path / "other").mkdir()
        with pytest.raises(DirectoryInUseError):
            take_place(tmp_path / "other", tmp_path / "engine")
    assert tree(tmp_path) == {f"engine/{MARK}": b"{}", "engine/weights": b"old"}
    write(tmp_path / "engine", "new")
    assert (tmp_path / "engine" / "weights").read_text() == "new"


def test_a_file_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "engine").write_text("x")
    with pytest.raises(ForeignDirectoryError, match="is a file"):
        write(tmp_path / "engine", "new")
    assert (tmp_path / "engine").read_text() == "x"


def test_what_came_there_meanwhile_is_not_replaced_either(tmp_path: Path) -> None:
    with (
        pytest.raises(ForeignDirectoryError),
        replace_directory(tmp_path / "engine", MARK) as partial,
    ):
        (partial / MARK).write_text("{}")
        (tmp_path / "engine").mkdir()
        (tmp_path / "engine" / "precious.txt").write_text("x")
    assert tree(tmp_path) == {"engine/precious.txt": b"x"}


def test_an_empty_directory_is_a_place(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    write(tmp_path / "engine", "new")
    assert (tmp_path / "engine" / "weights").read_text() == "new"


def test_the_same_again_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "engine", "same")
    before = (tmp_path / "engine").stat().st_ino
    write(tmp_path / "engine", "same")
    assert (tmp_path / "engine").stat().st_ino == before
    write(tmp_path / "engine", "else")
    assert (tmp_path / "engine").stat().st_ino != before


def test_a_link_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "engine", "old")
    (tmp_path / "engine").symlink_to(tmp_path / "disk" / "engine")
    write(tmp_path / "engine", "new")
    assert (tmp_path / "engine").is_symlink()
    assert (tmp_path / "disk" / "engine" / "weights").read_text() == "new"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["engine"]


def test_a_process_killed_between_two_renames_is_helped_out(tmp_path: Path) -> None:
    write(tmp_path / "engine", "old")
    (tmp_path / "engine").rename(tmp_path / ".engine.0123abcd.partial.old")
    with pytest.raises(RuntimeError), replace_directory(tmp_path / "engine", MARK):
        raise RuntimeError
    assert tree(tmp_path) == {f"engine/{MARK}": b"{}", "engine/weights": b"old"}


@pytest.mark.parametrize(
    "name", [".engine.0123abcd.partial", ".engine.download.partial", ".engine.download.partial.old"]
)
def test_what_others_call_alike_is_left_alone(name: str, tmp_path: Path) -> None:
    """A file where the kit has directories, a link to somebody's directory, and other programs' names."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "precious.txt").write_text("x")
    if "download" in name:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text("x")
    else:
        (tmp_path / name).write_text("x")
        (tmp_path / ".engine.0123abce.partial").symlink_to(home)
    before = tree(tmp_path)
    write(tmp_path / "engine", "new")
    assert tree(tmp_path) == before | {f"engine/{MARK}": b"{}", "engine/weights": b"new"}


@pytest.mark.parametrize("at_once", [True, False])
def test_what_comes_at_the_last_moment_is_not_replaced(
    at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody moves a directory there after it has been looked whether one is there."""
    claimed = files._claimed
    if not at_once:
        monkeypatch.setattr(files, "_exchanged", lambda first, second: False)

    @contextmanager
    def late(place: Path) -> Iterator[bool | None]:
        with claimed(place) as ours:
            place.mkdir(exist_ok=True)
            (place / "precious.txt").write_text("x")
            yield ours

    monkeypatch.setattr(files, "_claimed", late)
    with pytest.raises(ForeignDirectoryError):
        write(tmp_path / "engine", "new")
    assert tree(tmp_path) == {"engine/precious.txt": b"x"}


def test_what_another_process_is_writing_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slowly() -> None:
        with replace_directory(tmp_path / "engine", MARK) as partial:
            (partial / MARK).write_text("{}")
            inside.set()
            go_on.wait(60)
            (partial / "weights").write_text("slow")

    thread = threading.Thread(target=slowly)
    thread.start()
    inside.wait(60)
    write(tmp_path / "engine", "fast")
    assert (tmp_path / "engine" / "weights").read_text() == "fast"
    go_on.set()
    thread.join(60)
    assert (tmp_path / "engine" / "weights").read_text() == "slow"


def _write_often(path: Path, name: str) -> None:
    for number in range(40):
        write(path, f"{name} {number}")


def test_many_writers_do_not_hinder_each_other(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.deployments.test_directories import _write_often; "
        "_write_often(Path(sys.argv[1]), sys.argv[2])"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "engine"), str(number)], cwd=ROOT)
        for number in range(4)
    ]
    assert [process.wait(120) for process in processes] == [0, 0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert len(tree(tmp_path)) == 2
