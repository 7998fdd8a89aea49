"""The page that the exporter writes, and pages that others write."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from deploy.exporter.exposition import Families, parse_samples

TRITON = """\
# HELP nv_inference_count Number of inferences performed (does not include cached requests)
# TYPE nv_inference_count counter
nv_inference_count{model="ensemble",version="1"} 3
nv_pinned_memory_pool_total_bytes 0
up{instance="a\\"b\\\\c\\nd",} 1 1712345678901
lat_bucket{le="+Inf"} +Inf
broken{ 1
no value
nv_x abc
"""


def test_reads_what_triton_and_others_write() -> None:
    samples = list(parse_samples(TRITON))
    assert [(sample.name, dict(sample.labels)) for sample in samples] == [
        ("nv_inference_count", {"model": "ensemble", "version": "1"}),
        ("nv_pinned_memory_pool_total_bytes", {}),
        ("up", {"instance": 'a"b\\c\nd'}),
        ("lat_bucket", {"le": "+Inf"}),
    ]
    assert [sample.value for sample in samples] == [3, 0, 1, math.inf]


@given(st.dictionaries(st.text(), st.floats(allow_nan=False), min_size=1, max_size=5))
def test_a_page_reads_back_as_it_was_written(values: dict[str, float]) -> None:
    families = Families()
    families.declare("x_total", "counter", "x")
    for text, value in values.items():
        families.set("x_total", value, label=text)
    assert {sample.labels["label"]: sample.value for sample in parse_samples(families.page())} == values


def test_a_series_is_absent_until_it_has_a_value() -> None:
    families = Families()
    families.declare("x_total", "counter", "x")
    families.declare("y", "gauge", "y")
    assert families.page() == ""
    families.add("x_total", 0)
    families.set("y", 2.5, a="b")
    assert families.page().splitlines() == [
        *("# HELP x_total x", "# TYPE x_total counter", "x_total 0.0"),
        *("# HELP y y", "# TYPE y gauge", 'y{a="b"} 2.5'),
    ]
    families.only("y", 1, a="c")
    assert families.page().splitlines()[-1:] == ['y{a="c"} 1.0']
    assert families.value("y", a="b") is None
    families.clear("y")
    assert "y{" not in families.page()
