"""`drafthouse spec`: every key, explained, from the schema; and the page in the repository is that page."""

from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from build.trtllm.resolved import Supported
from build.trtllm.support.matrix import SUPPORT_MATRIX
from cli.main import app
from deployments.findings import Unsupported
from deployments.needs import EMBEDDED, NEEDS, TENSORRT_LLM, VLLM
from deployments.page import markdown_page, parts, terminal_page
from deployments.spec import DeploymentSpec, SpecError
from deployments.speculation import AnySpeculation
from engine.methods import EMBEDDED_SETTINGS
from engine.vllm.methods import vllm_method

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
    for part in parts():
        if part.needs is None:
            continue
        method = part.path.rpartition(".")[2]
        runs = {EMBEDDED: method in (*EMBEDDED_SETTINGS, "plan"), TENSORRT_LLM: method in production}
        runs[VLLM] = not isinstance(vllm_method(section_of(method)), Unsupported)
        assert part.needs.engines == tuple(engine for engine, does in runs.items() if does), method


def section_of(method: str) -> AnySpeculation:
    """Any section of the method."""
    places = dict.fromkeys(("model", "checkpoint", "plan"), Path("somewhere"))
    sections = {tag.tag: section for section, tag in map(get_args, get_args(get_args(AnySpeculation)[0]))}
    known = {key: place for key, place in places.items() if key in sections[method].model_fields}
    found: AnySpeculation = sections[method].model_validate({"method": method, **known})
    return found


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
