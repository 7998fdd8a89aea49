"""Which attention kernel serves, where it cannot be had, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from deployments.engines import EmbeddedEngine
from engine.attention_kernels import Attention, KernelName, chosen_kernel, chosen_precision
from engine.deployment import open_backend
from engine.manifest import EngineError
from engine.native.library import CachePrecision


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a compiler, or without AVX2."""
    for module in ("engine.attention_kernels", "cli.doctor"):
        monkeypatch.setattr(f"{module}.instructions", lambda: None)


@pytest.fixture
def with_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.attention_kernels.instructions", lambda: "avx2")


def chosen(kernel: KernelName | None = None, precision: CachePrecision | None = None) -> tuple[str, str, str]:
    how = Attention(kernel, precision)
    return chosen_kernel(how), chosen_precision(how, "int8"), chosen_precision(how, "fp32")


@pytest.mark.usefixtures("with_native")
def test_the_kit_s_own_serves_where_it_runs() -> None:
    assert chosen() == ("native", "int8", "fp32")
    assert chosen("openvino") == ("openvino", "fp16", "fp32")
    assert chosen(None, "fp16") == ("native", "fp16", "fp16")


@pytest.mark.usefixtures("without_native")
def test_openvino_s_serves_where_it_does_not() -> None:
    assert chosen() == ("openvino", "fp16", "fp32")
    with pytest.raises(
        EngineError, match=r"attention_kernel is native, but .*`python -m engine\.native\.build"
    ):
        open_backend(EmbeddedEngine(attention_kernel="native"))
    with pytest.raises(EngineError, match=r"kv_cache_precision is int8, .* fp16 and fp32 are there"):
        open_backend(EmbeddedEngine(kv_cache_precision="int8"))


@pytest.mark.usefixtures("without_native")
def test_doctor_and_check_say_so(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["doctor"])
    assert "openvino: the kit's kernel is not compiled" in " ".join(told.output.replace("│", " ").split())
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: a\ntarget: {model: nowhere}\nengine: {attention_kernel: native}\nspeculation: {method: none}\n"
    )
    found = CliRunner().invoke(app, ["build", "--check", str(spec)])
    assert found.exit_code != 0 and "attention_kernel is native, but" in " ".join(found.output.split())


def test_keys_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="kv_cache_precision: of backend openvino"):
        EmbeddedEngine(backend="torch", kv_cache_precision="fp16")
    with pytest.raises(ValueError, match="int8 needs attention_kernel native"):
        EmbeddedEngine(attention_kernel="openvino", kv_cache_precision="int8")
