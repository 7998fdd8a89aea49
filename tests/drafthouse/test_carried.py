"""Repositories for TensorRT-LLM and vLLM, where other people's `build`, `speculators` and the like are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.trtllm.repository.assemble import assemble_trtllm_repository
from build.trtllm.support.matrix import resolve
from build.vllm.repository import assemble_vllm_repository
from deployments.spec import DeploymentSpec
from tests.build.trtllm.specs import deployment
from tests.drafthouse.strangers import CHECK, install, run_beside
from tests.end_to_end.tiny_tokenizers import write_tokenizer

STAND_IN = Path(__file__).parents[1] / "model_repo" / "stand_in"
# A version's folder first or last: in Triton's process and in those that it starts.
ORDERS = pytest.mark.parametrize("order", [1, -1])
MODEL = "import model\nprint(model.TritonPythonModel.__module__.split('.')[0])\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """What is installed there."""
    install(tmp_path / "site")
    (tmp_path / "site" / "triton_python_backend_utils.py").write_text(
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1\n"
    )
    return tmp_path / "site"


def vllm_repository(folder: Path) -> Path:
    return assemble_vllm_repository(
        DeploymentSpec.model_validate(
            {
                "name": "tiny",
                "target": {"model": write_tokenizer(folder / "target", "byte-level")},
                "engine": {"kind": "vllm", "max_batch_size": 4},
                "speculation": {"method": "anpd"},
                "serving": {"repository": folder / "repository"},
            }
        )
    )


@ORDERS
def test_each_model_is_loaded_and_leaves_the_names_to_others(tmp_path: Path, site: Path, order: int) -> None:
    vllm = vllm_repository(tmp_path)
    trtllm = assemble_trtllm_repository(resolve(deployment("anpd", "A", "llm_api")), tmp_path / "trtllm")
    models = [*vllm.glob("*/1/model.py"), *trtllm.glob("*/1/model.py")]
    assert len(models) == 6
    for model in models:
        assert {path.name for path in model.parent.iterdir() if path.is_dir()} <= {
            "drafthouse",
            "drafthouse_vllm-0.dist-info",
        }
        told = run_beside([model.parent, site][::order], CHECK + MODEL + CHECK, tmp_path)
        assert told == "drafthouse\n"


@ORDERS
def test_vllm_finds_plugin_and_drafter_and_its_own_speculators(
    tmp_path: Path, site: Path, order: int
) -> None:
    """As `load_general_plugins` and `CustomClassProposer` of vLLM 0.32.0 look for them."""
    version = vllm_repository(tmp_path) / "tensorrt_llm" / "1"
    program = (
        "import importlib, importlib.metadata, yaml\n"
        "(entry,) = importlib.metadata.entry_points(group='vllm.general_plugins', name='drafthouse')\n"
        "assert callable(entry.load())\n"
        f"content = yaml.safe_load(open({str(version / 'model.yaml')!r}))\n"
        "module, name = content['speculative_config']['model'].rsplit('.', 1)\n"
        "print(getattr(importlib.import_module(module), name).__qualname__)\n"
    )
    assert run_beside([version, site][::order], program + CHECK, tmp_path) == "AnpdProposer\n"


@ORDERS
def test_tensorrt_llm_s_workers_find_the_drafter_that_is_a_python_object(
    tmp_path: Path, site: Path, order: int
) -> None:
    """It reaches them as a pickle; they have the version's folder on their path."""
    repository = assemble_trtllm_repository(resolve(deployment("anpd", "A", "llm_api")), tmp_path / "trtllm")
    paths = [repository / "tensorrt_llm" / "1", site, STAND_IN][::order]
    make = (
        "import pickle\n"
        "from drafthouse.engine.user_drafter import AnpdDrafter\n"
        "print(pickle.dumps(AnpdDrafter).hex())\n"
    )
    sent = run_beside(paths, make, tmp_path).strip()
    take = f"import pickle\nprint(pickle.loads(bytes.fromhex({sent!r})).__name__)\n"
    assert run_beside(paths, CHECK + take + CHECK, tmp_path) == "AnpdDrafter\n"
