"""Writes Triton model repositories: `config.pbtxt` as Triton's own `ModelConfig` protobuf, and the models' files.

Tensors come from the contract (`model_repo/contract.json`). A repository is assembled beside its destination and
renamed, so that a server never sees half of one.

Example::

    config = model_config("postprocessing", contract_tensors("postprocessing"), max_batch_size=8)
    set_parameters(config, {"tokenizer_dir": "models/smollm2-135m"})
    with staged(Path("runs/model_repo/mine")) as staging:
        write_model(staging, config, {"model.py": MODELS / "postprocessing" / "model.py"})
"""

import functools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from build.targets.files import writing_errors
from deployments.files.directories import ForeignDirectoryError, check_replaceable, replace_directory
from deployments.findings import Finding
from deployments.places import ENGINES, drafter_source
from deployments.spec import DeploymentSpec
from deployments.speculation import PlannedSpeculation
from engine.planned import drafting

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "model_repo"
REPOSITORY_MARK = "drafthouse.json"
"""The file by which the kit knows a repository for its own, and thus for one that it may replace."""
Tensor = Mapping[str, Any]
_RIGHT_PLACE = "a directory that is new, or that drafthouse build has made"


@dataclass(frozen=True)
class Tensors:
    """Inputs and outputs of a model, as the contract writes them."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]

    def plus(self, inputs: Sequence[Tensor] = (), outputs: Sequence[Tensor] = ()) -> "Tensors":
        """These tensors and more; one that is there already keeps its place and is replaced."""
        return Tensors(_unique([*self.inputs, *inputs]), _unique([*self.outputs, *outputs]))


@functools.cache
def contract() -> Mapping[str, Any]:
    """The tensors and parameters of NVIDIA's Triton models."""
    content: Mapping[str, Any] = json.loads((MODELS / "contract.json").read_text(encoding="utf-8"))
    return content


def contract_tensors(model: str) -> Tensors:
    """Tensors of a model of `inflight_batcher_llm`."""
    found = contract()["models"][model]
    return Tensors(found["inputs"], found["outputs"])


def model_config(name: str, tensors: Tensors, *, max_batch_size: int) -> Any:
    """A `ModelConfig` with its tensors; backend, parameters and the rest are the caller's to set."""
    config = model_config_pb2.ModelConfig(name=name, max_batch_size=max_batch_size)
    for field, described in ((config.input, tensors.inputs), (config.output, tensors.outputs)):
        for tensor in described:
            _add_tensor(field.add(), tensor)
    return config


def set_parameters(config: Any, parameters: Mapping[str, str]) -> None:
    """Set the model's parameters."""
    for key, value in parameters.items():
        config.parameters[key].string_value = value


def run_on_cpu(config: Any, *, count: int = 1) -> None:
    """One instance group of `count` instances; TensorRT-LLM finds its GPUs itself."""
    config.instance_group.add(count=count, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)


def add_step(config: Any, model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Append a step to an ensemble; both maps say which tensor of the ensemble a tensor of the model is."""
    config.platform = "ensemble"
    step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
    for name, outer in inputs.items():
        step.input_map[name] = outer
    for name, outer in outputs.items():
        step.output_map[name] = outer


@contextmanager
def staged(repository: Path) -> Iterator[Path]:
    """A directory to assemble a repository in; it takes the repository's place at the end, or is removed.

    A repository that is the same already is left alone: a server may be reading it.

    Raises:
        TargetError: what is there is no repository of the kit's, or it cannot be written.
    """
    with writing_errors(repository), replace_directory(repository, REPOSITORY_MARK) as staging:
        yield staging
        # Triton reads the directories in a repository, and no file beside them.
        (staging / REPOSITORY_MARK).write_text('{"made_by": "drafthouse build"}\n', encoding="utf-8")


def repository_place_findings(spec: DeploymentSpec) -> Iterator[Finding]:
    """An error if what lies where the repository would go is none of the kit's, or something else has a place there."""
    repository = spec.serving.repository
    try:
        check_replaceable(repository, REPOSITORY_MARK)
    except ForeignDirectoryError as error:
        yield Finding("not-the-kit-s-own", "error", f"serving.repository: {error}", _RIGHT_PLACE)
        return
    place = repository.resolve()
    for key, other in _other_places(spec):
        there = other.resolve()
        if place == there or place in there.parents or there in place.parents:
            yield Finding(
                "places-overlap",
                "error",
                f"serving.repository {repository} and {key} {other} lie in each other; the repository is replaced as a "
                "whole",
                _RIGHT_PLACE,
            )


def _other_places(spec: DeploymentSpec) -> Iterator[tuple[str, Path]]:
    """What else has a place in the deployment."""
    yield "target.model", spec.target.model
    sources = [drafter_source(each.speculation) for each in drafting(spec)]
    for source in filter(None, sources):
        yield "the drafter", source
    if isinstance(spec.speculation, PlannedSpeculation):
        yield "speculation.plan", spec.speculation.plan
    yield "loadtest.report", spec.loadtest.report
    yield "training.directory", spec.training.directory
    if spec.training.checkpoint is not None:
        yield "training.checkpoint", spec.training.checkpoint
    yield "the compiled engines", ENGINES


def write_model(repository: Path, config: Any, files: Mapping[str, Path | str]) -> None:
    """Write one model: its configuration, and in version 1 its files (a path is copied, text is written)."""
    version = repository / config.name / "1"
    version.mkdir(parents=True)
    for name, content in files.items():
        target = version / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copy2(content, target)
        else:
            target.write_text(content, encoding="utf-8")
    path = repository / config.name / "config.pbtxt"
    path.write_text(text_format.MessageToString(config), encoding="utf-8")


def _unique(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list({tensor["name"]: tensor for tensor in tensors}.values())


def _add_tensor(target: Any, tensor: Tensor) -> None:
    target.name = tensor["name"]
    target.data_type = model_config_pb2.DataType.Value(tensor["data_type"])
    target.dims.extend(tensor["dims"])
    for flag in ("optional", "allow_ragged_batch"):
        if tensor.get(flag):
            setattr(target, flag, True)
    if "reshape" in tensor:
        target.reshape.shape.extend(tensor["reshape"])
        target.reshape.SetInParent()
