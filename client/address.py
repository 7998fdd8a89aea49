"""Where a server is: `host:port` taken apart, with errors that say what was meant."""

from __future__ import annotations

from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from client.errors import InvalidRequest

Protocol = Literal["grpc", "http"]


class Address(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """``"localhost:8001"`` or ``"[::1]:8001"`` taken apart.

    Raises:
        InvalidRequest: a scheme, a path or no port.
    """
    wanted = f"url must be HOST:PORT, such as localhost:8001, not {url!r}"
    if "://" in url:
        raise InvalidRequest(f"{wanted}: leave the scheme out, `protocol` says it", field="url")
    try:
        parts = urlsplit(f"//{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidRequest(wanted, field="url") from None
    if not host or not port or parts.path or parts.query or parts.username:
        raise InvalidRequest(wanted, field="url")
    return Address(host, port)


def check_protocol(protocol: str) -> None:
    """Raise :class:`InvalidRequest` unless `protocol` is one of the two."""
    if protocol not in ("grpc", "http"):
        raise InvalidRequest(f"protocol must be 'grpc' or 'http', not {protocol!r}", field="protocol")
