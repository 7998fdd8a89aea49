"""The dashboard and how Grafana is told about it."""

from __future__ import annotations

import itertools

import pytest
import yaml

from planner.bench.peers.processes import run
from tests.deploy.dashboard import DASHBOARD, queries, read_dashboard
from tests.deploy.tools import DEPLOY, environment

# Reads the dashboard with Grafana's own model, writes it again, and prints what did not survive.
_ROUND_TRIP = """
import json, sys
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

def lost(ours, theirs, path):
    if isinstance(ours, dict):
        for key, value in ours.items():
            yield from lost(value, theirs.get(key) if isinstance(theirs, dict) else None, f"{path}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, value in enumerate(ours):
            yield from lost(value, theirs[index], f"{path}/{index}")
    elif ours != theirs:
        yield path

plugins.register_default_plugins()
ours = json.load(open(sys.argv[1]))
if len(sys.argv) > 2:
    ours["panels"][0][sys.argv[2]] = 1
print(*lost(ours, json.loads(json.dumps(Dashboard.from_json(ours), cls=JSONEncoder)), ""), sep="\\n")
"""


def recorded() -> set[str]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    return {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}


def test_every_panel_reads_one_recorded_figure_and_every_figure_is_shown() -> None:
    panels = read_dashboard()["panels"]
    assert [len(panel["targets"]) for panel in panels] == [1] * len(panels)
    assert {query.family for query in queries()} == recorded() | {"ALERTS"}


def test_panels_lie_beside_each_other_and_have_ids_of_their_own() -> None:
    panels = read_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart or below
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_the_data_source_can_be_chosen() -> None:
    dashboard = read_dashboard()
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "deployment"}
    for panel in dashboard["panels"]:
        for place in (panel, *panel["targets"]):
            assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.outside
def test_grafanas_own_model_keeps_every_field() -> None:
    sdk = environment("grafana")

    def lost(*more: str) -> str:
        command = [sdk.python, "-c", _ROUND_TRIP, DASHBOARD, *more]
        return run(command, seconds=60, variables=sdk.variables()).strip()

    assert lost() == ""
    assert lost("no_such_field") == "/panels/0/no_such_field"
