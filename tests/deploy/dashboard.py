"""The queries of the Grafana dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.deploy.tools import DEPLOY

DASHBOARD = DEPLOY / "grafana" / "dashboards" / "drafthouse.json"


@dataclass(frozen=True)
class Query:
    """One query of one panel, with the dashboard's variables filled in as "All" does."""

    panel: str
    expression: str

    @property
    def family(self) -> str:
        """The metric that it selects."""
        return self.expression.partition("{")[0]


def read_dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def queries() -> Iterator[Query]:
    for panel in read_dashboard()["panels"]:
        for target in panel["targets"]:
            yield Query(panel["title"], target["expr"].replace("$deployment", ".*"))
