"""Schema of the deployment spec (`deployments/*.yaml`).

One pydantic model is the single source of every key, default and limit: unknown keys are errors that name the
nearest right one, and paths are resolved against the directory in which the command runs.

Example::

    spec = load_spec(Path("deployments/smollm2-anpd.yaml"))
    spec.speculation.method          # "anpd"
"""

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from deployments.drafting import Speculation
from deployments.engines import AnyEngine, EmbeddedEngine, Precision, TensorRtLlmEngine, VllmEngine
from deployments.errors import DrafthouseError
from deployments.places import KIT_PROMPTS, filled_in, speculator_directory, target_directory
from deployments.printable import control_characters
from deployments.section import Section
from deployments.speculation import AnySpeculation, DraftModel, LowBit, NoSpeculation
from deployments.training import TrainingSpec

# A value is cut short: one that refers to others again and again has a text without end.
_GIVEN = reprlib.Repr()
_GIVEN.maxstring = _GIVEN.maxother = 200
_GIVEN.maxlevel = 3

_Engine = TypeVar("_Engine", EmbeddedEngine, TensorRtLlmEngine, VllmEngine)
_ENGINE_NAMES: Mapping[type, str] = {
    EmbeddedEngine: "the embedded engine",
    TensorRtLlmEngine: "TensorRT-LLM",
    VllmEngine: "vLLM",
}


class SpecError(DrafthouseError, ValueError):
    """The spec is missing, is no YAML, or says something impossible."""


class TargetSpec(Section):
    """The model that is served."""

    model: Path = Field(description="Directory in Hugging Face layout, as `drafthouse model` writes it.")
    source: str | None = Field(
        None, description="What `drafthouse model` fetches when the directory is missing."
    )
    model_type: str | None = Field(
        None, description="`model_type` of its config.json, such as llama; none: read from there."
    )


class ServingSpec(Section):
    """Where Triton listens and what the repository's defaults are."""

    repository: Path = Field(
        Path("runs/model_repo/{name}"),
        description="Where `drafthouse build` assembles the model repository; {name} is the deployment's.",
    )
    host: str = Field("127.0.0.1", description="Address that the server binds to.")
    http_port: int = Field(8000, ge=1, le=65535, description="KServe over HTTP.")
    grpc_port: int = Field(
        8001, ge=1, le=65535, description="KServe over gRPC, which the kit's client speaks."
    )
    metrics_port: int = Field(8002, ge=1, le=65535, description="Prometheus metrics.")
    exclude_input_in_output: bool = Field(
        True, description="Answer without the prompt unless a request says otherwise."
    )
    stop_by_id: bool = Field(
        False,
        description="Whether a request to tensorrt_llm with `stop` ends those with its id, whatever that is, as with "
        "NVIDIA's backend: any client could guess it. A random id of 32 hexadecimal digits is taken either way.",
    )
    on_failure: Literal["stop", "restart"] = Field(
        "stop",
        description="When a process of the server has ended or is stuck: end with status 1, for whoever restarts "
        "services to see, or start the server again. What ran in it ends with an error either way.",
    )
    silence_seconds: float = Field(
        60.0,
        gt=0,
        description="A model or engine that shows no sign of life for this many seconds is taken for dead; "
        "longer than its longest step.",
    )
    stop_seconds: float = Field(
        30.0,
        ge=0,
        description="What runs when the server is stopped may go on for this many seconds; new requests are refused.",
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> "ServingSpec":
        if len({self.http_port, self.grpc_port, self.metrics_port}) < 3:
            raise ValueError("http_port, grpc_port and metrics_port must be three different ports")
        return self


class LoadtestSpec(Section):
    """The sweep that `drafthouse loadtest` runs."""

    prompts: Path | None = Field(
        None,
        description="JSONL: Spec-Bench's format, chats, or texts (loadtest/prompts.py); none: the kit's own, twelve "
        "each of six kinds.",
    )
    concurrency: tuple[int, ...] = Field(
        (1, 2, 4, 8, 16), description="Closed loop: users that wait for their answer."
    )
    request_rates: tuple[float, ...] = Field((), description="Open loop: Poisson arrivals a second.")
    max_tokens: int = Field(64, ge=1, description="Output tokens a request asks for.")
    requests: int = Field(
        12, ge=1, description="Measured requests of a cell, or two per user if that is more."
    )
    cache: Literal["cold", "warm"] = Field(
        "cold",
        description="cold: no request finds its prompt in the server's prefix cache; warm: each prompt has been read "
        "just before, by every arm alike.",
    )
    rounds: int = Field(2, ge=1, description="How often each cell is measured, the arms alternating.")
    report: Path = Field(
        Path("runs/report/{name}"), description="Directory of records and report; {name} is the deployment's."
    )

    @property
    def prompts_file(self) -> Path:
        """Where the prompts are."""
        return self.prompts or KIT_PROMPTS


class DeploymentSpec(Section):
    """The whole file."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Names repository, reports and runs of training."
    )
    target: TargetSpec
    engine: AnyEngine = EmbeddedEngine()
    speculation: AnySpeculation = NoSpeculation()
    serving: ServingSpec = ServingSpec()
    loadtest: LoadtestSpec = LoadtestSpec()
    training: TrainingSpec = TrainingSpec()

    @model_validator(mode="after")
    def _named_places(self) -> "DeploymentSpec":
        """Say in whose name the places are of which the file does not say otherwise."""
        words = {"name": self.name, "target": self.target.model.name}
        for section, keys in (
            ("serving", ("repository",)),
            ("loadtest", ("report",)),
            ("training", ("directory", "checkpoint")),
        ):
            given = getattr(self, section)
            places = {
                key: filled_in(path, words) for key in keys if (path := getattr(given, key)) is not None
            }
            # Validators may set what is frozen only behind its back.
            object.__setattr__(self, section, given.model_copy(update=places))
        return self

    @property
    def embedded(self) -> EmbeddedEngine:
        """The `engine` section of a deployment on the embedded engine.

        Raises:
            SpecError: the deployment is for another engine.
        """
        return _of_kind(self, EmbeddedEngine)

    @property
    def tensorrt_llm(self) -> TensorRtLlmEngine:
        """The `engine` section of a deployment on TensorRT-LLM.

        Raises:
            SpecError: the deployment is for another engine.
        """
        return _of_kind(self, TensorRtLlmEngine)

    @property
    def vllm(self) -> VllmEngine:
        """The `engine` section of a deployment on vLLM.

        Raises:
            SpecError: the deployment is for another engine.
        """
        return _of_kind(self, VllmEngine)

    @property
    def engine_directory(self) -> Path:
        """Where the compiled target lies, by content and limits; shared by deployments that agree in them.

        Raises:
            SpecError: the target cannot be read.
        """
        engine = self.embedded
        with _readable(self):
            return target_directory(self.target.model, engine.precision, engine.max_sequence_length)

    @property
    def speculator_directory(self) -> Path:
        """Where the compiled speculator lies, beside its target; not there for methods without weights.

        Raises:
            SpecError: target or checkpoint cannot be read.
        """
        engine, precision = self.embedded, self.speculator_precision
        with _readable(self):
            return speculator_directory(
                self.speculation, self.target.model, precision, engine.max_sequence_length
            )

    @property
    def speculator_precision(self) -> Precision:
        """Weights of the compiled speculator: int8 beside quantised targets, unless the method has its own."""
        if isinstance(self.speculation, LowBit):
            return "int4"
        own = self.speculation.precision if isinstance(self.speculation, DraftModel) else None
        return own or ("fp32" if self.embedded.precision == "fp32" else "int8")

    @property
    def bls_drafts(self) -> bool:
        """Whether `tensorrt_llm_bls` drafts for the embedded engine, and not the engine itself."""
        return isinstance(self.speculation, Speculation) and self.speculation.drafted_by == "bls"

    @property
    def draft_deployment(self) -> "DeploymentSpec | None":
        """The draft model as a target of its own, if `tensorrt_llm_bls` calls it as a model of its own."""
        if not (self.bls_drafts and isinstance(self.speculation, DraftModel)):
            return None
        return self.model_copy(
            update={
                "target": TargetSpec(model=self.speculation.model),
                "engine": self.embedded.model_copy(update={"precision": self.speculator_precision}),
                "speculation": NoSpeculation(),
            }
        )


def _of_kind(spec: DeploymentSpec, kind: type[_Engine]) -> _Engine:
    if not isinstance(spec.engine, kind):
        has, needs = _ENGINE_NAMES[type(spec.engine)], _ENGINE_NAMES[kind]
        raise SpecError(f"{spec.name} is for {has} (engine.kind); this needs {needs}")
    return spec.engine


@contextmanager
def _readable(spec: DeploymentSpec) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpecError(f"{spec.name}: a model cannot be read: {error}") from None


def with_speculation(spec: DeploymentSpec, section: Mapping[str, Any]) -> DeploymentSpec:
    """The spec with another `speculation` section.

    Raises:
        SpecError: a value is impossible.
    """
    try:
        return DeploymentSpec.model_validate({**spec.model_dump(exclude_unset=True), "speculation": section})
    except ValidationError as error:
        raise SpecError(f"{spec.name}: {_explained(error)}") from None


def with_loadtest(spec: DeploymentSpec, changes: Mapping[str, Any]) -> DeploymentSpec:
    """The spec with other values in its `loadtest` section; those that are None stay as they are.

    Raises:
        SpecError: a value is impossible.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        load = LoadtestSpec.model_validate(spec.loadtest.model_dump() | given)
    except ValidationError as error:
        raise SpecError(_explained(error)) from None
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
    except IsADirectoryError:
        raise SpecError(f"{path} is a directory; name the YAML file of a deployment") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path} cannot be read as YAML: {error}") from error
    except RecursionError:
        raise SpecError(f"{path} cannot be read as YAML: it nests too deeply") from None
    if strange := next(control_characters(content), None):
        raise SpecError(f"{path}: no key or value has control characters or several lines: {strange[:80]}")
    if not isinstance(content, dict):
        raise SpecError(f"{path} must hold a mapping with the keys {', '.join(DeploymentSpec.model_fields)}")
    try:
        return DeploymentSpec.model_validate(content)
    except ValidationError as error:
        raise SpecError(f"{path}: {_explained(error)}") from None


def _explained(error: ValidationError) -> str:
    return "; ".join(_explain(item) for item in error.errors())


def _explain(item: Any) -> str:
    """One validation error as a sentence: the key's path, what is wrong, and the nearest right key."""
    path, sections = _walk(item["loc"])
    location = ".".join(path)
    if item["type"] == "union_tag_invalid":
        key, known = (
            item["ctx"]["discriminator"].strip("_()'"),
            re.findall(r"'([^']+)'", item["ctx"]["expected_tags"]),
        )
        return f"{location}.{key}: {item['ctx']['tag']!r} is not known" + _nearest(item["ctx"]["tag"], known)
    if item["type"] != "extra_forbidden":
        return f"{location or 'spec'}: {item['msg']} (given: {_GIVEN.repr(item['input'])})" + _taken_by(
            item, sections
        )
    for section in sections:
        if elsewhere := getattr(section, "ELSEWHERE", {}).get(path[-1]):
            return f"{location}: unknown key; {elsewhere}"
    known = [key for section in sections for key in section.model_fields]
    return f"{location}: unknown key" + _nearest(path[-1], known)


def _taken_by(item: Any, sections: list[type[BaseModel]]) -> str:
    """For a value that is none of its key's, the key of the same section that takes it."""
    if item["type"] != "literal_error":
        return ""
    for section in sections:
        for key, field in section.model_fields.items():
            if item["input"] in get_args(field.annotation):
                return f", did you mean {key}: {item['input']}?"
    return ""


def _nearest(given: str, known: list[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    return f", did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def _walk(location: tuple[Any, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """A location without the tags that pydantic puts in for unions, and the sections its last key may be in."""
    path: list[str] = []
    sections: list[type[BaseModel]] = [DeploymentSpec]
    holders = sections
    for part in map(str, location):
        tagged = [section for section in sections if part in _tags(section)]
        if tagged:
            sections = tagged
            continue
        path.append(part)
        holders = sections
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = [found for field in fields for found in _sections_in(field.annotation)]
    return path, holders


def _tags(section: type[BaseModel]) -> tuple[Any, ...]:
    return next(
        (
            get_args(section.model_fields[key].annotation)
            for key in ("method", "kind")
            if key in section.model_fields
        ),
        (),
    )


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections_in(part)]
