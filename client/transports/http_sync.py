"""HTTP for threads, on the standard library's client.

Each call opens a connection and closes it at its end. Beside a generation a TCP handshake is nothing,
closing the connection is how HTTP cancels, and owning the socket makes deadlines and cancellation exact:
every read gets the time that is left, and shutting the socket down wakes a reader in another thread, which
connection pools do not offer.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Generator, Iterator, Mapping

from client import errors
from client.address import Address
from client.contract import Declared, Outputs, Request, unknown_model
from client.transports import CONTROL_TIMEOUT, Call, CallState, Deadline
from client.transports import http_messages as kserve


class HttpTransport:
    """A way to one server; threads may share it."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def start(self, request: Request, deadline: Deadline) -> Call:
        """As :meth:`Transport.start`."""
        return _HttpCall(self._address, request, deadline)

    def declared_inputs(self, model: str, deadline: Deadline) -> Mapping[str, Declared]:
        """As :meth:`Transport.declared_inputs`."""
        return kserve.read_declared(self._about(model, kserve.model_path(model), deadline))

    def parameters(self, model: str, deadline: Deadline) -> Mapping[str, str]:
        """As :meth:`Transport.parameters`."""
        return kserve.read_parameters(self._about(model, kserve.config_path(model), deadline))

    def _about(self, model: str, path: str, deadline: Deadline) -> bytes:
        """The answer to a question about a model."""
        status, body = self._ask("GET", path, deadline)
        if status == 200:
            return body
        failure = kserve.read_failure(status, body)
        if isinstance(failure, errors.InvalidRequest):
            _, index = self._ask("POST", kserve.INDEX_PATH, deadline)
            failure = unknown_model(model, kserve.known_models(index))
        raise failure

    def is_ready(self, model: str) -> bool:
        """As :meth:`Transport.is_ready`."""
        try:
            status, _ = self._ask("GET", f"{kserve.model_path(model)}/ready", Deadline(None))
        except errors.ClientError:
            return False
        return status == 200

    def close(self) -> None:
        """As :meth:`Transport.close`; nothing is kept open between calls."""

    def _ask(self, method: str, path: str, deadline: Deadline) -> tuple[int, bytes]:
        timeout = deadline.remaining(CONTROL_TIMEOUT)
        connection = http.client.HTTPConnection(*self._address, timeout=timeout)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, _body(response, str(self._address))
        except TimeoutError:
            raise deadline.missed(str(self._address), "http") from None
        except (OSError, http.client.HTTPException) as error:
            raise errors.unreachable(str(self._address), "http", _reason(error)) from None
        finally:
            connection.close()


class _HttpCall(CallState):
    """One connection with one request."""

    def __init__(self, address: Address, request: Request, deadline: Deadline) -> None:
        super().__init__(str(address), request, deadline)
        self._connection = http.client.HTTPConnection(*address)
        # The connection lets go of it where the server announces that it will close.
        self._socket: socket.socket | None = None

    def responses(self) -> Generator[Outputs, None, None]:
        """As :meth:`Call.responses`."""
        request_id = self._request.request_id
        self._connect()
        try:
            response = self._send()
            if response.status != 200:
                raise kserve.read_failure(response.status, _body(response, self._address), request_id)
            yield from self._read(response)
        except TimeoutError:
            raise self._late() from None
        except (OSError, http.client.HTTPException) as error:
            lost = errors.connection_lost(self._address, _reason(error), request_id)
            raise self._unless_cancelled(lost) from None
        finally:
            self._connection.close()

    def cancel(self) -> None:
        """As :meth:`Call.cancel`."""
        self._cancelled = True
        if self._socket:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # already closed by either side

    def _connect(self) -> None:
        try:
            self._connection.timeout = self._deadline.remaining()
            self._connection.connect()
            self._socket = self._connection.sock
        except TimeoutError:
            raise self._late() from None
        except OSError as error:
            raise errors.unreachable(
                self._address, "http", _reason(error), self._request.request_id
            ) from None

    def _send(self) -> http.client.HTTPResponse:
        self._check_cancelled()
        path, body = kserve.generate_path(self._request), kserve.write_request(self._request)
        self._connection.request("POST", path, body, kserve.JSON_HEADERS)
        self._limit_wait()
        return self._connection.getresponse()

    def _read(self, response: http.client.HTTPResponse) -> Iterator[Outputs]:
        events = kserve.EventReader(self._address, self._request.request_id)
        # Unlike readline(), read1() tells a body that broke off from one that is complete.
        while data := response.read1():
            yield from events.feed(data)
            self._limit_wait()

    def _limit_wait(self) -> None:
        if self._socket and self._socket.fileno() >= 0:  # else it was closed with the end of the response
            self._socket.settimeout(self._deadline.remaining())


def _body(response: http.client.HTTPResponse, address: str) -> bytes:
    """All of it, if it is not too much."""
    body = response.read(errors.MOST_BYTES + 1)
    if len(body) > errors.MOST_BYTES:
        raise errors.too_long(address, "an answer")
    return body


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
