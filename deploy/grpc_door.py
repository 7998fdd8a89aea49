"""Whether Triton's gRPC server answers, which it may not do when everything behind it is well.

In every release up to 26.09 the thread that handles the end of a stream takes the lock of a step and then that of the
stream, while one that writes a response takes them the other way round (`ModelStreamInferHandler::Process` and
`StreamInferResponseComplete` in `stream_infer_handler.cc`). When a client leaves while its stream is written, each may
wait for the other, for ever, and with them all streams: one thread handles them all. HTTP may go on as if nothing were.

What is asked is about a model that is not there. That costs nothing, and is refused by the threads that are meant.
"""

from __future__ import annotations

import time

_SERVICE = "/inference.GRPCInferenceService"
_MODEL = b"drafthouse-nobody"
_QUESTION = (
    bytes([0x0A, len(_MODEL)]) + _MODEL
)  # ModelInferRequest of KServe: its field 1 is the model's name
_DEAD = ("DEADLINE_EXCEEDED", "UNAVAILABLE")


def fault(address: str, seconds: float) -> str | None:
    """What is wrong; None if single requests and streams are answered within `seconds`, or without grpcio."""
    try:
        import grpc
    except ImportError:  # an image of others; the kit's own clients have it
        return None
    begun = time.monotonic()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(f"{_SERVICE}/ModelInfer")
        stream = channel.stream_stream(f"{_SERVICE}/ModelStreamInfer")
        for name, call in (
            ("requests", lambda left: ask(_QUESTION, timeout=left)),
            # Read to its end: to leave it could cause what is looked for.
            ("streams", lambda left: list(stream(iter([_QUESTION]), timeout=left))),
        ):
            try:
                call(max(1.0, seconds - (time.monotonic() - begun)))
            except grpc.RpcError as error:
                if error.code().name in _DEAD:
                    return f"gRPC {name} at {address} are not answered within {seconds:g} s ({error.code().name})"
    return None
