"""Schema of the deployment spec (`deployments/*.yaml`).

One pydantic model is the single source of every key, default and limit: unknown keys are errors that name the
nearest right one, and paths are resolved against the directory in which the command runs.

Example::

    spec = load_spec(Path("deployments/smollm2-anpd.yaml"))
    spec.speculation.method          # "anpd"
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class SpecError(ValueError):
    """The spec is missing, is no YAML, or says something impossible."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TargetSpec(_Section):
    """The model that is served."""

    model: Path = Field(description="Directory in Hugging Face layout, as `drafthouse model` writes it.")
    source: str | None = Field(
        None, description="What `drafthouse model` fetches when the directory is missing."
    )


class EngineSpec(_Section):
    """How the target is compiled and run."""

    precision: Literal["int8", "fp32"] = Field(
        "int8", description="Weights: int8 per output channel, or fp32."
    )
    max_batch_size: int = Field(16, ge=1, le=256, description="Requests that run at once.")
    max_sequence_length: int = Field(2048, ge=64, description="Prompt and output of one request, in tokens.")
    max_queue_size: int = Field(64, ge=0, description="Requests that wait; one more is refused.")
    prefill_chunk: int = Field(
        128, ge=8, description="Prompt tokens a step takes in beside running requests."
    )
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0 takes every core.")


class SpeculationSpec(_Section):
    """What proposes tokens."""

    method: Literal["none", "anpd"] = Field("none", description="Speculator; `none` decodes token by token.")
    draft_length: int = Field(7, ge=1, le=31, description="Most tokens drafted in a step (K of ANPD).")
    ngram: int = Field(5, ge=2, le=16, description="Longest n-gram (N of ANPD).")


class ServingSpec(_Section):
    """Where Triton listens and what the repository's defaults are."""

    repository: Path = Field(
        Path("runs/model_repo"), description="Where `drafthouse build` assembles the model repository."
    )
    host: str = Field("127.0.0.1", description="Address that the server binds to.")
    http_port: int = Field(8000, ge=1, le=65535)
    grpc_port: int = Field(8001, ge=1, le=65535)
    metrics_port: int = Field(8002, ge=1, le=65535)
    exclude_input_in_output: bool = Field(
        True, description="Answer without the prompt unless a request says otherwise."
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> "ServingSpec":
        if len({self.http_port, self.grpc_port, self.metrics_port}) < 3:
            raise ValueError("http_port, grpc_port and metrics_port must be three different ports")
        return self


class LoadtestSpec(_Section):
    """The sweep that `drafthouse loadtest` runs."""

    prompts: Path = Field(
        Path("loadtest/prompts/drafthouse.jsonl"), description="JSONL in Spec-Bench's format."
    )
    concurrency: tuple[int, ...] = Field(
        (1, 2, 4, 8, 16), description="Closed loop: users that wait for their answer."
    )
    request_rates: tuple[float, ...] = Field((), description="Open loop: Poisson arrivals a second.")
    max_tokens: int = Field(64, ge=1, description="Output tokens a request asks for.")
    requests: int = Field(
        12, ge=1, description="Measured requests of a cell, or two per user if that is more."
    )
    rounds: int = Field(2, ge=1, description="How often each cell is measured, the arms alternating.")
    report: Path = Field(Path("runs/report"), description="Directory of records and report.")


class DeploymentSpec(_Section):
    """The whole file."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Names the compiled engine and the report."
    )
    target: TargetSpec
    engine: EngineSpec = EngineSpec()
    speculation: SpeculationSpec = SpeculationSpec()
    serving: ServingSpec = ServingSpec()
    loadtest: LoadtestSpec = LoadtestSpec()

    @property
    def engine_directory(self) -> Path:
        """Where the compiled target lies: one per target and precision, shared by deployments."""
        return Path("runs/engines") / f"{self.target.model.name}-{self.engine.precision}"


def with_loadtest(spec: DeploymentSpec, changes: Mapping[str, Any]) -> DeploymentSpec:
    """The spec with other values in its `loadtest` section; those that are None stay as they are.

    Raises:
        SpecError: a value is impossible.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        load = LoadtestSpec.model_validate(spec.loadtest.model_dump() | given)
    except ValidationError as error:
        raise SpecError("; ".join(_explain(item) for item in error.errors())) from None
    return spec.model_copy(update={"loadtest": load})


def load_spec(path: Path) -> DeploymentSpec:
    """Read and validate a spec.

    Raises:
        SpecError: names the file, the key and what would be right.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path} does not exist; examples lie in deployments/") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path} must hold a mapping with the keys {', '.join(DeploymentSpec.model_fields)}")
    try:
        return DeploymentSpec.model_validate(content)
    except ValidationError as error:
        raise SpecError(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from None


def _explain(item: Any) -> str:
    """One validation error as a sentence: the key's path, what is wrong, and the nearest right key."""
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{location or 'spec'}: {item['msg']} (given: {item['input']!r})"
    known = _keys_at(item["loc"][:-1])
    near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
    return f"{location}: unknown key" + (
        f", did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
    )


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    section: type[BaseModel] = DeploymentSpec
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        section = annotation
    return list(section.model_fields)
