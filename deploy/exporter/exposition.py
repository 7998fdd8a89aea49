"""Prometheus' text exposition format: reading samples, and the families that the exporter keeps.

Format: version 0.0.4 (`prometheus.io/docs/instrumenting/exposition_formats`).
"""

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\": "\\\\", "\n": "\\n", '"': '\\"'}
_UNESCAPES = {written: meant for meant, written in _ESCAPES.items()}

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """One line of a page: a series and its value."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse_samples(page: str) -> Iterator[Sample]:
    """The samples of a page; comments and lines that are none are passed over."""
    for line in page.split("\n"):
        found = _SAMPLE.match(line.strip())
        if found is None:
            continue
        name, labels, value = found.groups()
        pairs = {key: _unescape(text) for key, text in _LABEL.findall(labels or "")}
        try:
            yield Sample(name, pairs, float(value))
        except ValueError:
            continue


@dataclass
class _Family:
    kind: Literal["counter", "gauge"]
    description: str
    values: dict[Labels, float] = field(default_factory=dict)


class Families:
    """Named counters and gauges; every method may be called from any thread.

    A series appears with its first value, so what was never measured is absent from the page.
    """

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}
        self._lock = threading.Lock()

    def declare(self, name: str, kind: Literal["counter", "gauge"], description: str) -> None:
        """Make a family known."""
        self._families[name] = _Family(kind, description)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Give a series a value; for a counter, one that another counter has reached."""
        with self._lock:
            self._families[name].values[_key(labels)] = value

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Raise a counter; by 0 it appears."""
        with self._lock:
            values = self._families[name].values
            values[_key(labels)] = values.get(_key(labels), 0.0) + amount

    def value(self, name: str, **labels: str) -> float | None:
        """A series' value, None while it has none."""
        with self._lock:
            return self._families[name].values.get(_key(labels))

    def only(self, name: str, value: float, **labels: str) -> None:
        """Give a series a value and forget the others of its family; no page shows it half done."""
        with self._lock:
            self._families[name].values = {_key(labels): value}

    def clear(self, name: str) -> None:
        """Forget a family's series: their values are no longer known."""
        with self._lock:
            self._families[name].values.clear()

    def page(self) -> str:
        """The page that Prometheus reads."""
        with self._lock:
            return "".join(
                line
                for name, family in self._families.items()
                if family.values
                for line in _lines(name, family)
            )


def _lines(name: str, family: _Family) -> Iterator[str]:
    yield f"# HELP {name} {family.description}\n"
    yield f"# TYPE {name} {family.kind}\n"
    for labels, value in family.values.items():
        pairs = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
        yield f"{name}{{{pairs}}} {float(value)!r}\n" if pairs else f"{name} {float(value)!r}\n"


def _key(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _unescape(text: str) -> str:
    return re.sub(r'\\[\\n"]', lambda found: _UNESCAPES[found.group()], text)
