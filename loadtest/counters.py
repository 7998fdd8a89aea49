"""Triton's speculation counters, read from its Prometheus page.

The names are those of TensorRT-LLM 1.3 (``trtllm_spec_decode_*``, with a ``token_position`` label that counts
from 1) and of its Triton backend (``nv_trt_llm_request_metrics``). Counters only ever rise, so what one cell
did is the difference between two readings.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deployments.errors import DrafthouseError

_DRAFTED = "trtllm_spec_decode_drafted_tokens_total"
_ACCEPTED = "trtllm_spec_decode_accepted_tokens_total"
_REQUESTS = "nv_trt_llm_request_metrics"

_SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

_TIMEOUT_S = 5.0


class MetricsUnavailable(DrafthouseError, RuntimeError):
    """The metrics page cannot be read; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading."""

    drafted: Mapping[int, int]
    """Draft tokens proposed so far, by position in the draft (1 = first)."""
    accepted: Mapping[int, int]
    """Those of them that were accepted."""
    active_requests: int | None
    """Requests that the engine is working on; None if the page does not say."""


def read_counters(url: str) -> Counters:
    """Fetch and parse a metrics page.

    Raises:
        MetricsUnavailable: it cannot be fetched.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            return parse_counters(response.read().decode("utf-8", errors="replace"))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise MetricsUnavailable(f"cannot read Triton's metrics at {url}: {error}") from error


def parse_counters(page: str) -> Counters:
    """The counters in a page of the Prometheus text format; samples of several models are added up."""
    drafted: dict[int, int] = {}
    accepted: dict[int, int] = {}
    active: int | None = None
    for name, labels, value in _samples(page):
        if name in (_DRAFTED, _ACCEPTED) and labels.get("token_position", "").isdigit():
            by_position = drafted if name == _DRAFTED else accepted
            position = int(labels["token_position"])
            by_position[position] = by_position.get(position, 0) + int(value)
        elif name == _REQUESTS and labels.get("request_type") == "active":
            active = (active or 0) + int(value)
    return Counters(drafted, accepted, active)


def difference(before: Mapping[int, int], after: Mapping[int, int]) -> dict[int, int]:
    """How far each counter rose.

    A server restarted in between starts from zero, and so does the difference.
    """
    return {
        position: count - before.get(position, 0) if count >= before.get(position, 0) else count
        for position, count in sorted(after.items())
    }


def _samples(page: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in page.splitlines():
        match = _SAMPLE.match(line)
        if match:
            yield match["name"], dict(_LABEL.findall(match["labels"] or "")), float(match["value"])
