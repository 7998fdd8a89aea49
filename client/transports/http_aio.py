"""HTTP for asyncio, on aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

import aiohttp

from client import errors
from client.address import Address
from client.contract import Declared, Outputs, Request, unknown_model
from client.transports import CONTROL_TIMEOUT, AsyncCall, CallState, Deadline
from client.transports import http_messages as kserve


class AsyncHttpTransport:
    """One session with one server, made on first use: it belongs to the event loop that runs then."""

    def __init__(self, address: Address) -> None:
        self._address = str(address)
        self._opened: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            # As many connections as requests, and each closed after its request: see `http_sync`.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._opened = aiohttp.ClientSession(f"http://{self._address}", connector=connector)
        return self._opened

    def start(self, request: Request, deadline: Deadline) -> AsyncCall:
        """As :meth:`Transport.start`."""
        return _AsyncHttpCall(self._session, self._address, request, deadline)

    async def declared_inputs(self, model: str, deadline: Deadline) -> Mapping[str, Declared]:
        """As :meth:`Transport.declared_inputs`."""
        return kserve.read_declared(await self._about(model, kserve.model_path(model), deadline))

    async def parameters(self, model: str, deadline: Deadline) -> Mapping[str, str]:
        """As :meth:`Transport.parameters`."""
        return kserve.read_parameters(await self._about(model, kserve.config_path(model), deadline))

    async def _about(self, model: str, path: str, deadline: Deadline) -> bytes:
        """The answer to a question about a model."""
        status, body = await self._ask("GET", path, deadline)
        if status == 200:
            return body
        failure = kserve.read_failure(status, body)
        if isinstance(failure, errors.InvalidRequest):
            _, index = await self._ask("POST", kserve.INDEX_PATH, deadline)
            failure = unknown_model(model, kserve.known_models(index))
        raise failure

    async def is_ready(self, model: str) -> bool:
        """As :meth:`Transport.is_ready`."""
        try:
            status, _ = await self._ask("GET", f"{kserve.model_path(model)}/ready", Deadline(None))
        except errors.ClientError:
            return False
        return status == 200

    async def close(self) -> None:
        """As :meth:`Transport.close`."""
        if self._opened is not None:
            await self._opened.close()

    async def _ask(self, method: str, path: str, deadline: Deadline) -> tuple[int, bytes]:
        limit = aiohttp.ClientTimeout(total=deadline.remaining(CONTROL_TIMEOUT))
        try:
            async with self._session.request(method, path, timeout=limit) as response:
                return response.status, await _body(response, self._address)
        except asyncio.TimeoutError:  # in Python 3.10 not yet the built-in one
            raise deadline.missed(self._address, "http") from None
        except aiohttp.ClientError as error:
            raise errors.unreachable(self._address, "http", str(error)) from None


class _AsyncHttpCall(CallState):
    """One connection with one request."""

    def __init__(
        self, session: aiohttp.ClientSession, address: str, request: Request, deadline: Deadline
    ) -> None:
        super().__init__(address, request, deadline)
        self._session = session
        self._opening: asyncio.Task[aiohttp.ClientResponse] | None = None
        self._response: aiohttp.ClientResponse | None = None

    async def responses(self) -> AsyncGenerator[Outputs, None]:
        """As :meth:`Call.responses`."""
        request_id = self._request.request_id
        self._check_cancelled()
        try:
            self._opening = asyncio.ensure_future(self._send())
            self._response = await self._opening
            if self._response.status != 200:
                body = await _body(self._response, self._address)
                raise kserve.read_failure(self._response.status, body, request_id)
            async for outputs in self._read(self._response):
                yield outputs
        except asyncio.TimeoutError:  # in Python 3.10 not yet the built-in one
            raise self._late() from None
        except aiohttp.ClientConnectorError as error:
            raise errors.unreachable(self._address, "http", str(error), request_id) from None
        except aiohttp.ClientError as error:
            lost = errors.connection_lost(self._address, str(error), request_id)
            raise self._unless_cancelled(lost) from None
        except asyncio.CancelledError:
            # Ours, while the response had not begun; otherwise the caller's task is being cancelled.
            self._check_cancelled()
            raise

    def cancel(self) -> None:
        """As :meth:`Call.cancel`."""
        self._cancelled = True
        if self._response is not None:
            self._response.close()
        elif self._opening is not None:
            self._opening.cancel()

    async def _send(self) -> aiohttp.ClientResponse:
        return await self._session.post(
            kserve.generate_path(self._request),
            data=kserve.write_request(self._request),
            headers=kserve.JSON_HEADERS,
            timeout=aiohttp.ClientTimeout(total=self._deadline.remaining()),
        )

    async def _read(self, response: aiohttp.ClientResponse) -> AsyncIterator[Outputs]:
        events = kserve.EventReader(self._address, self._request.request_id)
        async for data in response.content.iter_any():
            for outputs in events.feed(data):
                yield outputs


async def _body(response: aiohttp.ClientResponse, address: str) -> bytes:
    """All of it, if it is not too much."""
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > errors.MOST_BYTES:
            raise errors.too_long(address, "an answer")
    return bytes(body)
