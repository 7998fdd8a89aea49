"""A server process: stopped in time, and never leaving anything behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import place as places
from deploy import processes
from deploy.place import Place, remove
from deploy.processes import end_session, find, of_session
from deploy.server import PLACE_VARIABLE, ServerDied, TritonError
from deploy.watch import Watch, watched
from tests.deploy.stand_in_server import StandIn
from tests.end_to_end.deployment import wait_until


@pytest.fixture(autouse=True)
def _own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    server = StandIn(tmp_path / "log")
    with server:
        server.wait_until_ready()
        yield server


def traces(name: str, tmp_path: Path) -> list[Path]:
    return [*Path("/dev/shm").glob(f"{name}*"), *(tmp_path / "tmp").glob("*")]


def test_stopping_leaves_nothing(server: StandIn, tmp_path: Path) -> None:
    name, session = server.place.name, server.session
    assert len(of_session(session)) == 3, "guard, server and its child"
    assert any(path.name == f"{name}_region" for path in traces(name, tmp_path))
    server.stop()
    assert of_session(session) == [] and traces(name, tmp_path) == []


def test_one_that_does_not_stop_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    with StandIn(tmp_path / "log", stubborn=True, stop_seconds=0.2) as server:
        server.wait_until_ready()
        name, session = server.place.name, server.session
    assert of_session(session) == [] and traces(name, tmp_path) == []


def test_it_is_asked_to_stop_though_there_is_no_room_to_tell_its_models(
    server: StandIn, tmp_path: Path
) -> None:
    shutil.rmtree(server.place.directory)
    server.stop()
    assert (tmp_path / "log").read_text().endswith("stopped\n")


def test_a_second_interrupt_ends_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = StandIn(tmp_path / "log", stubborn=True, stop_seconds=3600)
    server.start()
    server.wait_until_ready()
    session = server.session

    def interrupt(seconds: float) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.server.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    assert of_session(session) == []


def test_one_that_is_not_ready_yet_is_ended_at_once(tmp_path: Path) -> None:
    """Triton hears no signal while it loads weights, which takes minutes."""
    server = StandIn(tmp_path / "log", stubborn=True, stop_seconds=3600)
    server.start()
    session = server.session
    wait_until(lambda: len(of_session(session)) == 3, "it loads")
    server.stop()
    assert of_session(session) == []


def test_whoever_uses_a_server_does_not_wait_for_a_dead_one(server: StandIn) -> None:
    """As `drafthouse demo` and `bench` do: a request in flight gets no answer from a Triton whose stubs are stopped."""
    signs = server.place.directory / "signs"
    signs.mkdir()
    (signs / "tensorrt_llm_0_0").touch()
    session = server.session

    def ask() -> None:
        with watched(server, silence_seconds=0.5):
            wait_until(lambda: of_session(session) == [], "it is ended")
            raise ConnectionError("the request has broken off")

    with pytest.raises(ServerDied, match="tensorrt_llm_0_0 has shown no sign of life"):
        ask()


def test_a_fault_of_the_users_is_told_while_the_server_lives(server: StandIn) -> None:
    with pytest.raises(ZeroDivisionError), watched(server, 60):
        1 / 0  # noqa: B018
    assert server.status is None


def test_a_killed_guard_takes_the_server_with_it(server: StandIn, tmp_path: Path) -> None:
    name, session = server.place.name, server.session
    os.kill(session, signal.SIGKILL)
    with pytest.raises(ServerDied, match="ended with status -9"):
        Watch(server, 60).wait()
    server.kill()
    assert of_session(session) == [] and traces(name, tmp_path) == []


def test_the_end_of_a_server_is_seen_though_it_is_told_to_stop_just_then(server: StandIn) -> None:
    """The guard hears of both at once."""
    guard = server.session
    (triton,) = [found.pid for found in of_session(guard) if found.parent == guard]
    os.kill(guard, signal.SIGSTOP)
    os.kill(triton, signal.SIGKILL)
    wait_until(lambda: (found := find(triton)) is not None and found.state == "Z", "the server has ended")
    os.kill(guard, signal.SIGTERM)
    os.kill(guard, signal.SIGCONT)
    wait_until(lambda: server.status is not None, "the guard has ended")
    assert server.status == 128 + signal.SIGKILL


def test_a_process_that_cannot_be_killed_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In uninterruptible sleep, which cannot be had at will: as `/proc` would show one, with a number that none has."""
    (tmp_path / "5000000").mkdir()
    (tmp_path / "5000000" / "stat").write_text("5000000 (triton) D 1 77 77 0 -1")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    monkeypatch.setattr(processes, "_END_SECONDS", 0.1)
    assert [found.state for found in of_session(77)] == ["D"]
    ending = threading.Thread(target=end_session, args=(77,), daemon=True)
    ending.start()
    ending.join(60)
    assert not ending.is_alive()


def test_it_becomes_ready_whatever_proxy_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with StandIn(tmp_path / "log") as server:
        server.wait_until_ready(20)


def test_what_outlived_everybody_is_removed_at_the_next_start(tmp_path: Path) -> None:
    """Killed together, as the kernel does when memory runs out, server, guard and `serve` remove nothing."""
    dead = Place.take()
    (Path("/dev/shm") / f"{dead.name}_region").write_text("x")
    (dead.directory / "backends").mkdir()
    dead.give_up()
    living = Place.take()
    try:
        assert traces(dead.name, tmp_path) and all(
            living.name in str(path) for path in traces(living.name, tmp_path)
        )
        assert not list(Path("/dev/shm").glob(f"{dead.name}*"))
        third = Place.take()  # whose sweep leaves alone what lives
        assert living.directory.is_dir() and list(Path("/dev/shm").glob(f"{living.name}*"))
        remove(third.name)
        third.give_up()
    finally:
        remove(living.name)
        living.give_up()


def test_nothing_but_the_kits_own_is_removed(tmp_path: Path) -> None:
    """Anybody may make files in a directory for temporary ones, with names that mean something."""
    tmp = tmp_path / "tmp"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    for name in ("drafthouse_*", "drafthouse_", "drafthouse_0123456789abcdef"):
        (tmp / f"{name}.lock").touch()
    (tmp / "drafthouse_notes").mkdir()
    (tmp / "drafthouse_0123456789abcdef").symlink_to(precious)
    place = Place.take()
    assert (precious / "file").exists() and (tmp / "drafthouse_notes").is_dir()
    assert not (tmp / "drafthouse_0123456789abcdef").is_symlink()
    remove(place.name)
    place.give_up()


def test_a_lock_that_is_held_elsewhere_keeps_its_place(tmp_path: Path) -> None:
    place = Place.take()
    inherited = [os.dup(handle) for handle in place.locks]
    place.give_up()
    places.remove_abandoned()
    assert place.directory.is_dir()
    for handle in inherited:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)
    places.remove_abandoned()
    assert not place.directory.exists()


def test_no_room_is_told_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, mode: int = 0o777) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "mkdir", full)
    before = set(Path("/dev/shm").glob("drafthouse_*"))
    with pytest.raises(TritonError, match="No space left on device"):
        StandIn(tmp_path / "log").start()
    assert set(Path("/dev/shm").glob("drafthouse_*")) <= before
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_model_that_shows_no_sign_of_life_is_dead(server: StandIn) -> None:
    signs = server.place.directory / "signs"
    signs.mkdir()
    lively, stuck = signs / "preprocessing_0_0", signs / "tensorrt_llm_0_0, engine"
    lively.touch()
    stuck.touch()
    watch = Watch(server, silence_seconds=0.5)

    def look() -> bool:
        os.utime(lively)
        watch.look()
        return False

    with pytest.raises(ServerDied, match=r"tensorrt_llm_0_0, engine has shown no sign of life for 0\.5 s"):
        wait_until(look, "it is noticed")


def test_models_know_their_place(server: StandIn) -> None:
    child = next(found for found in of_session(server.session) if found.pid != server.session)
    environment = Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
    assert f"{PLACE_VARIABLE}={server.place.directory}".encode() in environment
    assert find(child.pid) == child


def test_the_log_of_the_last_start_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for _ in range(2):
        with StandIn(log) as server:
            server.wait_until_ready()
    assert log.read_text().startswith("started") and (tmp_path / "log.1").read_text().startswith("started")
