"""The Triton model repository of a deployment on vLLM.

`tensorrt_llm` drives vLLM's asynchronous engine; everything else is what stands in front of TensorRT-LLM's LLM API
(`build.triton.text_models`). As there, a repository carries the kit's modules that its models import.
"""

from __future__ import annotations

from pathlib import Path

from build.identity import identity
from build.repository import CACHE_SALT, TEXT_MODELS
from build.targets.files import writing_errors
from build.triton.model_config import (
    ROOT,
    Tensors,
    model_config,
    run_on_cpu,
    set_parameters,
    staged,
    write_model,
)
from build.triton.module_files import module_files
from build.triton.parameters import check_models
from build.triton.text_models import (
    bls_config,
    ensemble_config,
    postprocessing_config,
    python_files,
    waiting_requests,
)
from build.trtllm.llm_api.arguments import as_yaml
from build.trtllm.repository.assemble import ACCEPTANCE_SOURCE, TritonModel, llmapi_tensors
from build.vllm.arguments import draft_directory, engine_arguments
from deployments.spec import DeploymentSpec
from deployments.speculation import DraftModel
from engine.vllm.plugin import ENTRY_POINT
from speculators.draft_model.checkpoint import whole_model

# What vLLM imports by name, in processes of its own.
_IMPORTED = ("engine/vllm/proposer.py", "engine/vllm/plugin.py")
_PLUGIN = {
    "drafthouse_vllm-0.dist-info/METADATA": "Metadata-Version: 2.1\nName: drafthouse-vllm\nVersion: 0\n",
    "drafthouse_vllm-0.dist-info/entry_points.txt": ENTRY_POINT,
}
"""An installed package to Python, by which vLLM finds the kit's plugin."""


def assemble_vllm_repository(spec: DeploymentSpec, *, root: Path | None = None) -> Path:
    """Write the repository; one that is there is replaced. A draft model without its embedding is completed beside it.

    Raises:
        NotInVllm: vLLM does not do what the `speculation` section asks for.
        CheckpointError: the draft model is damaged, or that of another target.
        TargetError: where it would be written lies something that is none of the kit's, or it cannot be written.
        SpecError: `engine.triton_parameters` names what does not exist, or gives a value of the wrong form.
    """
    base = (root or Path.cwd()).absolute()
    _complete_draft(spec)
    models = _models(spec, base)
    who = identity(spec).parameters(prefix_cache=spec.vllm.kv_cache_reuse)
    with staged(spec.serving.repository) as staging:
        for model in models:
            if model.config.name in TEXT_MODELS:
                set_parameters(model.config, who)
            write_model(staging, model.config, model.files)
    return spec.serving.repository


def _models(spec: DeploymentSpec, base: Path) -> list[TritonModel]:
    engine, tokenizer = spec.vllm, base / spec.target.model
    bls = {
        "tensorrt_llm_model_name": "tensorrt_llm",
        "exclude_input_in_output": str(spec.serving.exclude_input_in_output).lower(),
        "max_requests": waiting_requests(engine),
        "always_drafts": str(spec.speculation.method != "none").lower(),
    }
    added = Tensors(inputs=[CACHE_SALT], outputs=[ACCEPTANCE_SOURCE])
    text_models = [
        TritonModel(ensemble_config(engine, added), {}),
        TritonModel(
            postprocessing_config(engine, tokenizer), python_files("model_repo/postprocessing/model.py")
        ),
        TritonModel(
            bls_config(engine, bls, added), python_files("model_repo/llmapi/tensorrt_llm_bls/model.py")
        ),
    ]
    # `tensorrt_llm` takes no parameters: what it goes by is in its YAML.
    check_models(engine.triton_parameters, [model.config.name for model in text_models])
    return [*text_models, _generation(spec, base)]


def _generation(spec: DeploymentSpec, base: Path) -> TritonModel:
    config = model_config("tensorrt_llm", llmapi_tensors(), max_batch_size=0)
    config.backend = "python"
    run_on_cpu(config)
    config.model_transaction_policy.decoupled = True
    triton = {"max_batch_size": 0, "decoupled": True, "cancellation_check_period_ms": 100}
    triton["stop_by_id"] = spec.serving.stop_by_id
    entry = "model_repo/vllm/tensorrt_llm/model.py"
    return TritonModel(
        config,
        {
            **python_files(entry),
            **{path: ROOT / path for path in _IMPORTED},
            **module_files(entry, *_IMPORTED),
            **_PLUGIN,
            "model.yaml": as_yaml({**engine_arguments(spec, base), "triton_config": triton}),
        },
    )


def _complete_draft(spec: DeploymentSpec) -> None:
    directory, speculation = draft_directory(spec), spec.speculation
    if isinstance(speculation, DraftModel):
        with writing_errors(directory):
            whole_model(speculation.model, spec.target.model, directory)
