"""Tables fit a terminal of 80 columns: nothing is cut off, and no figure or interval is broken."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from cli.checks import checked_table
from cli.profile import cost_table, length_table
from engine.plan import Candidate, Estimate, Outlook
from planner.bench.measure import BATCHES, TOKENS, BenchResult
from planner.bench.peers.summary import ArmSummary
from planner.bench.peers.table import acceptance_table, category_table, peers_table, position_table
from planner.bench.table import step_table, throughput_table
from planner.plan.check import Checked, Measured
from planner.plan.predict import Traffic
from planner.profile.acceptance import Figure

CATEGORIES = ("writing", "math_reasoning", "summarization")
INTERVAL = {"value": 2.31, "low": 2.24, "high": 12.39, "count": 99}


def bench() -> BenchResult:
    """Figures as of a slow machine."""
    names = [f"{count} token" + "s" * (count > 1) for count in TOKENS]
    names += [f"batch {batch}" for batch in BATCHES[1:]]
    rates = ("engine, batch 1", "through Triton, one chunk a token, batch 1", "openvino-genai, batch 1")
    rounds = {name: [100.0, 1234.5, 99999.9] for name in names}
    rounds |= {f"{name}, tokens/s": [1234.5, 1000.1, 9999.9] for name in rates}
    return BenchResult("e", 10**9, rounds | {"bandwidth GB/s": [12.3] * 3})


def peers() -> list[ArmSummary]:
    arm = ArmSummary(
        engine="openvino-genai",
        method="none",
        decode_rate=1234.56,
        whole_rate=1000.0,
        speedup=1.0,
        by_category=dict.fromkeys(CATEGORIES, 12.34),
        interval_by_category=dict.fromkeys(CATEGORIES, (1.23, 12.34)),
        interval=(1.23, 12.34),
        to_ours=0.82,
        acceptance_length=None,
        acceptance_by_category=dict.fromkeys(CATEGORIES, 12.3),
        equal=120,
        compared=120,
        draft_ms=12.34,
        by_position=[Figure(0.123, 0.101, 0.145, 12345)] * 31,
    )
    methods = ("none", "prompt lookup 10", "EAGLE-3 and lookup", "ngram-map-k4v", "ngram-simple", "a", "b")
    return [
        replace(arm, engine=engine, method=method)
        for engine in ("drafthouse", "llama.cpp")
        for method in methods
    ] + [replace(arm, engine="llama.cpp", method="draft model 5")]


def profile() -> dict[str, dict[str, object]]:
    figures = {
        "acceptance_length": INTERVAL,
        "by_category": {name: {"acceptance_length": INTERVAL} for name in CATEGORIES},
    }
    return {"0": figures, "1": figures}


def checked() -> list[Checked]:
    candidate = Candidate(deployment="x", method="anpd", draft_length=15, adaptive=False)
    measured = Measured("c16", "anpd", "x", None, Traffic(16, 1000, 200), 12345.0)
    figure = Estimate(value=1234.0, low=1111.0, high=12345.0)
    estimates = {name: figure for name in Outlook.model_fields if name not in ("candidate", "worth")}
    outlook = Outlook(candidate=candidate, **estimates, worth=1.0)
    return [
        Checked(measured, candidate, outlook),
        Checked(measured, None, None, "not profiled here"),
    ]


COSTS = [
    {"batch": batch, "tokens": count, "ms": [1234.5]} for batch in BATCHES for count in (1, 2, 4, 6, 8, 16)
]


@pytest.mark.parametrize(
    "table",
    [
        step_table(bench()),
        throughput_table(bench()),
        peers_table(peers()),
        category_table(peers()),
        acceptance_table(peers()),
        position_table([replace(peers()[0], method="draft_model"), replace(peers()[-1], engine="vllm")]),
        length_table(profile()),
        cost_table(COSTS, "verifying N tokens"),
        checked_table(checked()),
    ],
    ids=lambda table: str(table.columns[0].header or table.columns[1].header),
)
def test_a_table_fits_80_columns(table: Table) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    cells = [str(cell) for column in table.columns[1:] for cell in column._cells]
    assert [
        cell
        for cell in cells
        if cell.removeprefix("[bold]").removesuffix("[/]").replace("\\[", "[") not in text
    ] == []
