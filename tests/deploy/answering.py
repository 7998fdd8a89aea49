"""A server on the loopback address that gives prepared answers, in the shapes that TensorRT-LLM's servers give."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = str | list[Any] | dict[str, Any]


class Answering:
    """`pages[path]` is what a request gets: text, JSON, or for `generate_stream` a list of events."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pages: dict[str, Body] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def model(self, name: str, inputs: Sequence[str], events: Sequence[Mapping[str, Any]]) -> None:
        """A Triton model that declares these inputs and streams these events."""
        self.pages[f"/v2/models/{name}/config"] = {"input": [{"name": each} for each in inputs]}
        self.pages[f"/v2/models/{name}/generate_stream"] = [dict(event) for event in events]


@contextmanager
def answering() -> Iterator[Answering]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, fields: dict[str, Any]) -> None:
            state.asked.append((self.path, fields))
            page = state.pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.end_headers()
            if self.path.endswith("generate_stream") and isinstance(page, list):
                for event in page:
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            elif page is not None:
                self.wfile.write((page if isinstance(page, str) else json.dumps(page)).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Answering(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
