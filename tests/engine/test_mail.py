"""Messages between the models of one server; and callers who never wait within Triton's own iterator."""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class _Backend(ModuleType):
    """Of Triton's module, what the ones under test read when they are imported."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    TritonModelException = type("TritonModelException", (Exception,), {})


@pytest.fixture
def mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", _Backend("triton_python_backend_utils"))
    place = tmp_path / ("a" * 60) / ("b" * 60)  # longer than a socket's name may be
    place.mkdir(parents=True)
    monkeypatch.setenv("DRAFTHOUSE_PLACE", str(place))
    sys.modules.pop("engine.serving.mail", None)
    import engine.serving.mail

    yield engine.serving.mail
    sys.modules.pop("engine.serving.mail", None)


def test_a_message_arrives(mail: Any) -> None:
    got: queue.Queue[str] = queue.Queue()
    box = mail.Mailbox("tensorrt_llm", got.put)
    for number in range(2000):  # more than a socket holds: the sender waits
        assert mail.send("tensorrt_llm", f"message {number}")
    assert [got.get(timeout=60) for _ in range(2000)] == [f"message {number}" for number in range(2000)]
    box.close()
    assert not mail.send("tensorrt_llm", "too late")


def test_who_has_no_box_gets_nothing(mail: Any) -> None:
    assert not mail.send("nobody", "x") and not mail.send("../x", "x") and not mail.send("", "x")


def test_a_box_that_was_left_behind_is_replaced(mail: Any) -> None:
    got: queue.Queue[str] = queue.Queue()
    mail.Mailbox("name", lambda text: None)._socket.close()
    box = mail.Mailbox("name", got.put)
    assert mail.send("name", "x") and got.get(timeout=60) == "x"
    box.close()


def test_a_model_that_is_loaded_anew_keeps_its_box_when_the_old_one_is_closed(mail: Any) -> None:
    got: queue.Queue[str] = queue.Queue()
    old = mail.Mailbox("tensorrt_llm", lambda text: None)
    new = mail.Mailbox("tensorrt_llm", got.put)
    old.close()
    assert mail.send("tensorrt_llm", "x") and got.get(timeout=60) == "x"
    new.close()
    assert not mail._folder().exists()


def test_whoever_speaks_after_the_last_box_has_been_closed_leaves_nothing_behind(mail: Any) -> None:
    mail.Mailbox("name", lambda text: None).close()
    assert not mail.send("name", "x") and not mail._folder().exists()


def test_a_directory_that_another_has_put_there_is_not_used(
    mail: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name can be guessed where somebody else's tritonserver runs."""
    monkeypatch.delenv("DRAFTHOUSE_PLACE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = tmp_path / "own"
    own.mkdir()
    (own / "name").write_text("of the user")
    mail._folder().symlink_to(own)
    with pytest.raises(PermissionError, match="is not a directory of this user's"):
        mail.Mailbox("name", lambda text: None)
    assert (own / "name").read_text() == "of the user"
    mail._folder().unlink()
    mail.Mailbox("name", lambda text: None).close()
    other = os.getuid() + 1
    monkeypatch.setattr("os.getuid", lambda: other)
    mail._folder().mkdir()
    with pytest.raises(PermissionError, match="is not a directory of this user's"):
        mail.Mailbox("name", lambda text: None)


def test_whoever_is_stopped_holds_nobody_up(mail: Any) -> None:
    go_on = threading.Event()
    box = mail.Mailbox("name", lambda text: go_on.wait())
    try:
        assert not all(mail.send("name", "x" * 200) for _ in range(10_000))
    finally:
        go_on.set()
        box.close()


def test_a_box_is_closed_also_where_it_has_been_removed(mail: Any, tmp_path: Path) -> None:
    box = mail.Mailbox("name", lambda text: None)
    shutil.rmtree(mail._folder().parent)
    assert not mail.send("name", "x")
    box.close()


def test_whoever_answers_tells_of_each_response_after_it_was_sent(mail: Any) -> None:
    happened: queue.Queue[Any] = queue.Queue()
    box = mail.Mailbox("0123abcd", happened.put)
    sender = SimpleNamespace(
        send=lambda *given, **flags: happened.put(("sent", given, flags)), is_cancelled=lambda: False
    )
    identity = "0123abcd" * 4
    request = SimpleNamespace(get_response_sender=lambda: sender, request_id=lambda: identity)
    teller = mail.Teller(request)
    teller.send("first")
    assert happened.get(timeout=60)[0] == "sent" and mail.heard(happened.get(timeout=60)) == (identity, False)
    teller.send(flags=1)
    assert happened.get(timeout=60)[0] == "sent" and mail.heard(happened.get(timeout=60)) == (identity, True)
    box.close()


def test_nothing_is_asked_for_before_it_has_come(mail: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "_PATIENCE_SECONDS", 60.0)
    arrivals, asked = mail.Arrivals(), threading.Semaphore(0)

    def ask() -> None:
        for _ in range(4):
            arrivals.wait()
            asked.release()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert asked.acquire(timeout=60)  # the first has come when Triton gives a call back
    assert not asked.acquire(timeout=0.1)
    arrivals.hear(last=False)
    assert not asked.acquire(timeout=0.1)
    arrivals.hear(last=False)
    assert asked.acquire(timeout=60) and not asked.acquire(timeout=0.1)
    arrivals.hear(last=True)
    assert asked.acquire(timeout=60) and asked.acquire(timeout=60)  # the third, and the end
    thread.join(60)


def test_of_an_error_of_tritons_own_nobody_tells(mail: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "_PATIENCE_SECONDS", 0.01)
    arrivals = mail.Arrivals()
    for _ in range(3):
        arrivals.wait()


def test_one_message_that_is_lost_does_not_slow_down_all_that_follows(
    mail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail, "_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(mail, "_PAUSE_SECONDS", 0.001)
    arrivals = mail.Arrivals()
    arrivals.hear(last=False)

    def ask() -> None:
        for _ in range(60):
            arrivals.wait()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(30)  # with patience each time they would take a minute
    assert not thread.is_alive()
