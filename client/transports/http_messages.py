"""JSON of Triton's generate extension: requests written, server-sent events read.

Plain KServe inference over HTTP is refused for decoupled models, and an ensemble around a language model is
one. The generate extension takes a JSON object with the inputs as fields (a tensor of one element may be a
bare value) and answers on `/generate_stream` with one server-sent event for each response.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from client import errors
from client.contract import Declared, Outputs, Request

JSON_HEADERS = {"Content-Type": "application/json"}


def generate_path(request: Request) -> str:
    """The path that `request` is posted to."""
    return f"{model_path(request.model)}/generate_stream"


def model_path(model: str) -> str:
    """The path of a model's metadata, under which its other paths are."""
    return f"/v2/models/{quote(model, safe='')}"


INDEX_PATH = "/v2/repository/index"


def write_request(request: Request) -> bytes:
    """The JSON body that asks for `request`."""
    body: dict[str, Any] = {"id": request.request_id}
    for tensor in request.tensors:
        body[tensor.name] = tensor.values[0] if len(tensor.values) == 1 else list(tensor.values)
    return json.dumps(body).encode()


class EventReader:
    """Finds the responses in a server-sent event stream, whatever pieces it arrives in.

    Triton writes each event as a single line, `data: {...}`, and an empty one after it.
    """

    def __init__(self, address: str, request_id: str) -> None:
        self._address = address
        self._request_id = request_id
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Outputs]:
        """The responses that `data` completes.

        Raises:
            ClientError: an event reports an error, or is too long.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > errors.MOST_BYTES:
            raise errors.too_long(self._address, "an event", self._request_id)
        for line in lines:
            if line.startswith(b"data:"):
                yield self._read(json.loads(line[len(b"data:") :]))

    def _read(self, fields: dict[str, Any]) -> Outputs:
        if "error" in fields:
            raise errors.from_server(fields["error"], None, self._request_id)
        return {name: value if isinstance(value, list) else [value] for name, value in fields.items()}


def read_failure(status: int, body: bytes, request_id: str | None = None) -> errors.ClientError:
    """The error for an HTTP answer other than 200. What fails before its first response comes as such an
    answer, with the body written as an event."""
    try:
        message = json.loads(body.strip().removeprefix(b"data:"))["error"]
    except (ValueError, KeyError, TypeError):
        return _not_triton(status, body, request_id)
    return errors.from_server(message, None, request_id)


def _not_triton(status: int, body: bytes, request_id: str | None = None) -> errors.ServerUnavailable:
    said = " ".join(body[:80].decode(errors="replace").split())
    return errors.ServerUnavailable(
        f"what answers there is not Triton's HTTP endpoint (status {status}: {said or 'nothing'}); check host and port",
        request_id=request_id,
    )


def _read(body: bytes) -> dict[str, Any]:
    """The JSON object that Triton answers a question with."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _not_triton(200, body)
    return found


def read_declared(body: bytes) -> Mapping[str, Declared]:
    """The inputs that a model's metadata declares."""
    inputs = _read(body).get("inputs", [])
    return {tensor["name"]: Declared(tensor["datatype"], len(tensor["shape"])) for tensor in inputs}


def config_path(model: str) -> str:
    """The path of a model's configuration."""
    return f"{model_path(model)}/config"


def read_parameters(body: bytes) -> Mapping[str, str]:
    """The parameters in a model's configuration."""
    found = _read(body).get("parameters", {})
    return {name: value.get("string_value", "") for name, value in found.items()}


def known_models(body: bytes) -> list[str]:
    """The names of the models that the server has; none where it keeps its index closed."""
    try:
        index = json.loads(body)
    except ValueError:  # a proxy keeps it closed, with a page of its own
        index = None
    return [model["name"] for model in index] if isinstance(index, list) else []
