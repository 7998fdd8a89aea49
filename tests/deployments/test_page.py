"""`drafthouse spec`: every key, explained, from the schema; and the page in the repository is that page."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from build.trtllm.resolved import Supported
from build.trtllm.support.matrix import SUPPORT_MATRIX
from cli.main import app
from deployments.needs import BOTH, EMBEDDED, NEEDS, TENSORRT_LLM
from deployments.page import markdown_page, parts, terminal_page
from deployments.spec import DeploymentSpec, SpecError
from engine.methods import EMBEDDED_SETTINGS

PAGE = Path(__file__).parents[2] / "deployments" / "README.md"


def test_every_key_is_explained() -> None:
    unexplained = [f"{part.path}.{key.name}" for part in parts() for key in part.keys if not key.description]
    assert unexplained == []


def test_no_key_is_left_out() -> None:
    names = {key.name for part in parts() for key in part.keys}
    schema = DeploymentSpec.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    assert names == {key for section in sections for key in section["properties"]} - {"method", "kind"}


def test_every_method_says_what_it_needs_and_where_it_runs() -> None:
    told = {part.path.rpartition(".")[2]: part.needs for part in parts() if part.needs is not None}
    assert told == NEEDS
    production = {
        method
        for methods in SUPPORT_MATRIX.values()
        for method, entry in methods.items()
        if isinstance(entry, Supported)
    }
    for method, needs in NEEDS.items():
        here, there = method in EMBEDDED_SETTINGS, method in production
        assert (here, there) == {BOTH: (True, True), EMBEDDED: (True, False), TENSORRT_LLM: (False, True)}[
            needs.engines
        ]


def test_the_page_in_the_repository_is_up_to_date() -> None:
    assert PAGE.read_text() == markdown_page(), "drafthouse spec --markdown > deployments/README.md"


@pytest.mark.parametrize("width", [60, 80])
def test_it_fits_the_terminal(width: int) -> None:
    assert max(map(len, terminal_page(width=width).splitlines())) <= width


def test_a_part_can_be_asked_for() -> None:
    told = CliRunner().invoke(app, ["spec", "speculation.eagle3"])
    assert told.exit_code == 0
    assert told.stdout.startswith("speculation.eagle3: EAGLE-3")
    assert "speculation.eagle3.dynamic_tree" in told.stdout and "medusa" not in told.stdout
    assert "draft_length: whole number, 1 to 31 (default: 3)" in told.stdout
    with pytest.raises(
        SpecError, match=r"no section speculation\.eagle33, did you mean speculation\.eagle3\?"
    ):
        terminal_page("speculation.eagle33")
    assert CliRunner().invoke(app, ["spec", "nonsense"]).exit_code == 2


def test_ranges_and_defaults_are_those_of_the_schema() -> None:
    found = {f"{part.path}.{key.name}": key for part in parts() for key in part.keys}
    assert found["serving.http_port"].value == "whole number, 1 to 65535"
    assert found["engine.tensorrt_llm.kv_cache.free_gpu_memory_fraction"].value == "number, above 0, below 1"
    assert found["engine.embedded.max_sequence_length"].value == "whole number, 64 or more"
    assert found["training.learning_rate"].value == "number, above 0"
    assert found["target.model"].default == "required"
    assert found["speculation.drafted_by"].value == "engine, bls"
    assert "speculation.anpd.drafted_by" not in found
