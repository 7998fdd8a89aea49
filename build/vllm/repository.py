"""The Triton model repository of a deployment on vLLM.

`tensorrt_llm` drives vLLM's asynchronous engine; everything else is what stands in front of TensorRT-LLM's LLM API
(`build.triton.llmapi`). As there, a repository carries the kit's modules that its models import.
"""

from __future__ import annotations

from pathlib import Path

from build.identity import identity
from build.targets.files import writing_errors
from build.triton.llmapi import llmapi_config, model_yaml, models_in_front
from build.triton.models import TritonModel, identify, make_models, write_repository
from build.triton.module_files import python_files
from build.vllm.arguments import draft_directory, engine_arguments, incomplete_draft
from deployments.spec import DeploymentSpec
from engine.vllm.plugin import ENTRY_POINT
from speculators.draft_model.checkpoint import whole_model

# What vLLM imports by name, in processes of its own.
_IMPORTED = ("engine/vllm/proposer.py", "engine/vllm/mlp_speculator.py", "engine/vllm/plugin.py")
PLUGIN = {
    "drafthouse_vllm-0.dist-info/METADATA": "Metadata-Version: 2.1\nName: drafthouse-vllm\nVersion: 0\n",
    "drafthouse_vllm-0.dist-info/entry_points.txt": ENTRY_POINT,
}
"""An installed package to Python, by which vLLM finds the kit's plugin."""


def assemble_vllm_repository(spec: DeploymentSpec) -> Path:
    """Write the repository; one that is there is replaced. A draft model without its embedding is completed beside it.

    Raises:
        UnsupportedDeployment: vLLM does not do what the `speculation` section asks for, or `engine.triton_parameters`
            names what does not exist, or gives a value of the wrong form.
        CheckpointError: the draft model is damaged, or that of another target.
        TargetError: where it would be written lies something that is none of the kit's, or it cannot be written.
    """
    base = Path.cwd()
    _complete_draft(spec)
    drafts = str(spec.speculation.method != "none").lower()
    front = models_in_front(spec, spec.vllm, base / spec.target.model, always_drafts=drafts)
    # `tensorrt_llm` takes no parameters: what it goes by is in its YAML.
    models = [*make_models(front, spec.vllm.triton_parameters), _generation(spec, base)]
    identify(models, identity(spec).parameters(prefix_cache=spec.vllm.kv_cache_reuse))
    return write_repository(spec.serving.repository, models)


def _generation(spec: DeploymentSpec, base: Path) -> TritonModel:
    entry = "model_repo/vllm/tensorrt_llm/model.py"
    return TritonModel(
        llmapi_config({}),
        {
            **python_files(entry, *_IMPORTED),
            **PLUGIN,
            "model.yaml": model_yaml(engine_arguments(spec, base), stop_by_id=spec.serving.stop_by_id),
        },
    )


def _complete_draft(spec: DeploymentSpec) -> None:
    source, directory = incomplete_draft(spec), draft_directory(spec)
    if source is not None:
        with writing_errors(directory):
            whole_model(source, spec.target.model, directory)
