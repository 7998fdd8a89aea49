"""KServe messages of Triton's gRPC service: requests written, responses read, statuses translated.

Tensors travel as raw little-endian bytes beside their descriptions, strings with a four-byte length in
front (Triton's binary tensor extension). Reading them here rather than through `tritonclient`'s
`InferResult` saves a copy and a numpy object array a chunk, which at thousands of chunks a second is what a
client's time goes into.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages

from client import errors
from client.contract import Declared, Outputs, Request, Tensor
from client.transports import CallState, Deadline

# Larger messages than gRPC's own 4 MiB (a long answer with log-probabilities is large), and no detour through a web
# proxy that the environment names, which the HTTP transports do not take either.
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", errors.MOST_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)

_DTYPES = {
    "BOOL": np.dtype("?"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP32": np.dtype("<f4"),
}


@dataclass(frozen=True)
class Method:
    """One method of the service: its path and its messages."""

    name: str
    request: Any
    response: Any

    def bind(self, kind: Callable[..., Any]) -> Any:
        """The callable for this method from a channel's `unary_unary` or `unary_stream`."""
        return kind(
            f"/inference.GRPCInferenceService/{self.name}",
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )


# The service declares `ModelStreamInfer` as a stream both ways. A call with one request message and then
# half-closed is the same on the wire, and gRPC needs no thread to feed it.
STREAM_INFER = Method("ModelStreamInfer", messages.ModelInferRequest, messages.ModelStreamInferResponse)
MODEL_METADATA = Method("ModelMetadata", messages.ModelMetadataRequest, messages.ModelMetadataResponse)
MODEL_CONFIG = Method("ModelConfig", messages.ModelConfigRequest, messages.ModelConfigResponse)
MODEL_READY = Method("ModelReady", messages.ModelReadyRequest, messages.ModelReadyResponse)
REPOSITORY_INDEX = Method(
    "RepositoryIndex", messages.RepositoryIndexRequest, messages.RepositoryIndexResponse
)


class StreamCall(CallState):
    """One gRPC stream with one request, whose messages are waited for elsewhere."""

    def __init__(self, channel: Any, address: str, request: Request, deadline: Deadline) -> None:
        super().__init__(address, request, deadline)
        self._stream = STREAM_INFER.bind(channel.unary_stream)
        self._rpc: Any = None
        self._reported: errors.ClientError | None = None

    def cancel(self) -> None:
        """As :meth:`Call.cancel`."""
        self._cancelled = True
        if self._rpc is not None:
            self._rpc.cancel()

    def _send(self) -> Any:
        """The stream of messages that answer."""
        self._check_cancelled()
        self._rpc = self._stream(write_request(self._request), timeout=self._deadline.remaining())
        if self._cancelled:  # by another thread, meanwhile
            self._rpc.cancel()
        return self._rpc

    def _read(self, message: messages.ModelStreamInferResponse) -> Outputs | None:
        """The response in a message, if it reports no error, nor one before it did.

        After an error the stream's end follows. Hanging up before it would leave the request open in Triton 2.51.
        """
        if message.error_message:
            self._reported = errors.from_server(message.error_message, None, self._request.request_id)
        return None if self._reported else read_response(message.infer_response)

    def _check_reported(self) -> None:
        if self._reported is not None:
            raise self._reported

    def _failure(self, error: Any) -> errors.ClientError:
        """The client's error where the stream failed (`grpc.RpcError`, sync or asyncio)."""
        if self._reported is not None:
            return self._reported
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._unless_cancelled(self._late())
        return self._unless_cancelled(_failure(error, self._address, self._request.request_id))


def write_request(request: Request) -> messages.ModelInferRequest:
    """The message that asks for `request`."""
    message = messages.ModelInferRequest(model_name=request.model, id=request.request_id)
    for tensor in request.tensors:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(_write_tensor(tensor))
    return message


def read_response(message: messages.ModelInferResponse) -> Outputs:
    """The response's tensors; those of types that no result uses are left out."""
    contents = zip(message.outputs, message.raw_output_contents, strict=False)
    return {
        output.name: _read_tensor(output.datatype, raw)
        for output, raw in contents
        if output.datatype == "BYTES" or output.datatype in _DTYPES
    }


def read_declared(message: messages.ModelMetadataResponse) -> Mapping[str, Declared]:
    """The inputs that a model's metadata declares."""
    return {tensor.name: Declared(tensor.datatype, len(tensor.shape)) for tensor in message.inputs}


def read_parameters(message: messages.ModelConfigResponse) -> Mapping[str, str]:
    """The parameters in a model's configuration."""
    return {name: value.string_value for name, value in message.config.parameters.items()}


def known_models(message: messages.RepositoryIndexResponse) -> list[str]:
    """The names of the models that the server has."""
    return [model.name for model in message.models]


# How gRPC itself words that no connection could be had, and that one was lost.
_NO_CONNECTION = ("failed to connect", "Connection refused", "DNS", "name resolver", "http1.x", "HTTP/1")
_LOST_CONNECTION = (
    "Socket closed",
    "Connection reset",
    "recvmsg",
    "GOAWAY",
    "Stream removed",
    "EOF",
    "RST_STREAM",
)


def question_failure(error: Any, address: str, deadline: Deadline) -> errors.ClientError:
    """The client's error for a question about a model whose call failed (`grpc.RpcError` of either kind)."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return deadline.missed(address, "grpc")
    return _failure(error, address, None)


def _failure(error: Any, address: str, request_id: str | None) -> errors.ClientError:
    code, details = error.code(), error.details() or ""
    if any(sign in details for sign in _NO_CONNECTION):
        return errors.unreachable(address, "grpc", details, request_id)
    if any(sign in details for sign in _LOST_CONNECTION):
        return errors.connection_lost(address, details, request_id)
    return errors.from_server(details, code.name, request_id)


def _write_tensor(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        texts = [text.encode() for text in tensor.values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.asarray(tensor.values, dtype=_DTYPES[tensor.datatype]).tobytes()


def _read_tensor(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        values: list[Any] = np.frombuffer(raw, dtype=_DTYPES[datatype]).tolist()
        return values
    texts: list[Any] = []
    start = 0
    while start < len(raw):
        (length,) = struct.unpack_from("<I", raw, start)
        texts.append(raw[start + 4 : start + 4 + length].decode("utf-8", errors="replace"))
        start += 4 + length
    return texts
