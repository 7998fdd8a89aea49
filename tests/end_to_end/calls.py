"""Requests in the raw: any tensors to any model over gRPC, any bytes over HTTP, nothing checked on the way out."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

Tensors = Mapping[str, NDArray[Any]]
_SECONDS = 30.0


class ServerRefusal(Exception):
    """The server answered with an error; the text is its message, `status` that of the HTTP answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class GrpcCaller:
    """A channel of its own to one server."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
        self.stub = services.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> GrpcCaller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connection, and with it what is under way."""
        self._channel.close()

    def open(self, model: str, tensors: Tensors, request_id: str = "", *, seconds: float = _SECONDS) -> Any:
        """A stream with one request; iterate it with `responses`, end it early with `.cancel()`."""
        return self.send(write_message(model, tensors, request_id), seconds)

    def send(self, message: messages.ModelInferRequest, seconds: float = _SECONDS) -> Any:
        return self.stub.ModelStreamInfer(iter([message]), timeout=seconds)

    def infer(self, model: str, tensors: Tensors, request_id: str = "") -> list[Tensors]:
        """All responses; raises `ServerRefusal` if one is an error."""
        return list(responses(self.open(model, tensors, request_id)))


def responses(stream: Any) -> Iterator[Tensors]:
    """The responses of a stream that carry tensors; raises `ServerRefusal` at the end if one is an error."""
    failure = ""
    for message in stream:
        failure = failure or message.error_message
        if message.infer_response.outputs:
            yield read_message(message.infer_response)
    if failure:
        raise ServerRefusal(failure)


def write_message(model: str, tensors: Tensors, request_id: str = "") -> messages.ModelInferRequest:
    """The message that sends these arrays as they are."""
    message = messages.ModelInferRequest(model_name=model, id=request_id)
    for name, values in tensors.items():
        datatype = np_to_triton_dtype(values.dtype)
        message.inputs.add(name=name, datatype=datatype, shape=values.shape)
        raw = (
            serialize_byte_tensor(values).item() if datatype == "BYTES" and values.size else values.tobytes()
        )
        message.raw_input_contents.append(b"" if values.size == 0 else raw)
    return message


def read_message(message: messages.ModelInferResponse) -> Tensors:
    """Outputs by name."""
    found = {}
    for output, raw in zip(message.outputs, message.raw_output_contents, strict=True):
        text = output.datatype == "BYTES"
        flat = (
            deserialize_bytes_tensor(raw) if text else np.frombuffer(raw, triton_to_np_dtype(output.datatype))
        )
        found[output.name] = flat.reshape(tuple(output.shape))
    return found


def text_inputs(*prompts: str | bytes, max_tokens: int = 16, **others: Any) -> dict[str, NDArray[Any]]:
    """Inputs of `ensemble` and `tensorrt_llm_bls` for a batch; `others` are one value, or an array, for all rows."""
    rows = len(prompts)
    encoded = [prompt.encode() if isinstance(prompt, str) else prompt for prompt in prompts]
    tensors: dict[str, NDArray[Any]] = {"text_input": np.array(encoded, object).reshape(rows, 1)}
    for name, value in {"max_tokens": max_tokens, **others}.items():
        tensors[name] = _tensor(name, value, rows)
    return tensors


def token_inputs(ids: list[int], max_tokens: int = 16, **others: Any) -> dict[str, NDArray[Any]]:
    """Inputs of `tensorrt_llm` for one prompt."""
    tensors: dict[str, NDArray[Any]] = {"input_ids": np.array([ids], np.int32)}
    for name, value in {"input_lengths": len(ids), "request_output_len": max_tokens, **others}.items():
        tensors[name] = _tensor(name, value, 1)
    return tensors


def _tensor(name: str, value: Any, rows: int) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (list, tuple)):
        words = np.array([[word.encode() for word in value]] * rows, object)
        return words.reshape(rows, len(value))
    kind: Any = np.float32 if isinstance(value, float) else np.int32
    kind = np.bool_ if isinstance(value, bool) else np.uint64 if name in ("seed", "random_seed") else kind
    return np.full((rows, 1), value, kind)


def whole_text(answers: list[Tensors], row: int = 0) -> str:
    """The chunks of one row of a batch, joined."""
    of_row = [answer for answer in answers if int(np.ravel(answer.get("batch_index", 0))[0]) == row]
    return b"".join(answer["text_output"].ravel()[0] for answer in of_row).decode()


def whole_tokens(answers: list[Tensors]) -> list[int]:
    """The tokens of all chunks."""
    return [token for answer in answers for token in answer["output_ids"].ravel().tolist()]


def http_post(
    address: str, path: str, body: bytes, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of the answer."""
    connection = http.client.HTTPConnection(address, timeout=_SECONDS)
    try:
        connection.request("POST", path, body, dict(headers or {"Content-Type": "application/json"}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def http_generate(
    address: str, fields: Mapping[str, Any], model: str = "ensemble", stream: bool = False
) -> list[Any]:
    """The JSON objects that `/generate` (one) or `/generate_stream` (one an event) answers with."""
    path = f"/v2/models/{model}/generate" + "_stream" * stream
    status, body = http_post(address, path, json.dumps(fields).encode())
    found = [json.loads(line.removeprefix("data: ")) for line in body.decode().split("\n") if line.strip()]
    if status != 200 or any("error" in item for item in found):
        raise ServerRefusal(next((item["error"] for item in found if "error" in item), body.decode()), status)
    return found


def http_vanish(address: str, path: str, body: bytes, read: int) -> None:
    """Post, read `read` bytes of the answer, and close the socket in the server's face."""
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=_SECONDS) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while read > 0 and (data := connection.recv(read)):
            read -= len(data)
