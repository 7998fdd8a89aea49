"""Has chat templates compiled and rendered by `client.template_process`, and ends it when it takes too long.

There is one such process for all templates of this one. It is started when it is needed (some 70 ms), and anew after
one of its templates had to be ended; a text takes a tenth of a millisecond more than it would here.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PROGRAM = Path(__file__).with_name("template_process.py")
_SECONDS = 5.0
"""A chat template takes milliseconds."""
_START_SECONDS = 30.0
_MEMORY = 256 * 2**20
_LONGEST = 16 * 2**20
"""Characters of a text, and of a template a sixteenth."""
_PIECE = 2**16
_NOTHING = b'{"source": "", "context": null}\n'


class TemplateFault(Exception):
    """A template cannot be compiled or rendered; the text says why, `line` where if that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class _Renderer:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def ask(self, source: str, context: Mapping[str, Any] | None) -> str:
        """The text of a template; compiles only where there is no context.

        Raises:
            TemplateFault: it cannot be had within the limits.
            TypeError: the context holds what is not JSON.
        """
        if len(source) > _LONGEST // 16:
            raise TemplateFault(f"it has {len(source)} characters; at most {_LONGEST // 16} are taken")
        job = json.dumps({"source": source, "context": context}, default=_as_json).encode() + b"\n"
        with self._lock:
            answer = json.loads(self._exchange(job))
        if "error" in answer:
            raise TemplateFault(answer["error"], answer.get("line"))
        return str(answer["text"])

    def _exchange(self, job: bytes) -> bytes:
        try:
            if self._process is None or self._process.poll() is not None:
                self._start()
                self._within(_START_SECONDS, _NOTHING)
            return self._within(_SECONDS, job)
        except BaseException:  # also an interrupt: what is under way would answer the next job
            self.end()
            raise

    def _within(self, limit: float, job: bytes) -> bytes:
        assert self._socket is not None
        end = time.monotonic() + limit
        pieces: list[bytes] = []
        try:
            self._socket.settimeout(limit)
            self._socket.sendall(job)
            while not pieces or not pieces[-1].endswith(b"\n"):
                self._socket.settimeout(max(0.001, end - time.monotonic()))
                pieces.append(self._socket.recv(_PIECE))
                if not pieces[-1]:
                    raise ConnectionError
        except TimeoutError:
            raise TemplateFault(f"it takes longer than {limit:g} s") from None
        except OSError:
            raise TemplateFault("it has ended the process that renders templates") from None
        return b"".join(pieces)

    def _start(self) -> None:
        self._socket, its = socket.socketpair()
        path = [place for place in sys.path if isinstance(place, str)]  # as `import` reads it
        limits = [str(_MEMORY), str(_LONGEST), str(int(2 * _SECONDS))]
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_PROGRAM), json.dumps(path), *limits],
                stdin=its.fileno(), stdout=its.fileno(), stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def end(self) -> None:
        """End the process; harmless if there is none."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
        if process is not None:
            process.kill()
            process.wait()

    def forget(self) -> None:
        """It is another's: this process is a copy of the one that started it."""
        self.__init__()  # type: ignore[misc]


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is not a JSON value")


_RENDERER = _Renderer()
atexit.register(_RENDERER.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_RENDERER.forget)


def compile_template(source: str) -> None:
    """Find out whether a template is valid.

    Raises:
        TemplateFault: it is not, or takes more time or memory than templates do.
    """
    _RENDERER.ask(source, None)


def render_template(source: str, context: Mapping[str, Any]) -> str:
    """The text of a template.

    Raises:
        TemplateFault: it refuses the context in its own words, fails on it, or takes more time or memory than
            templates do.
        TypeError: the context holds what is not JSON.
    """
    return _RENDERER.ask(source, context)
