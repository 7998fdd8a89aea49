"""Who a served deployment is: what a repository says about itself, and what a spec's should say.

The models that take text carry it as parameters of their `config.pbtxt`, on every engine, and Triton gives that to
anybody who asks (KServe's model configuration, over HTTP `GET /v2/models/ensemble/config`). So whoever measures or
verifies a deployment can see that it is the one that answers.

    drafthouse_deployment     the spec's name
    drafthouse_spec           hash of its target, engine and speculation
    drafthouse_weights        hash of the weights that it was built from, if they are at hand
    drafthouse_prefix_cache   whether KV cache of ended requests is kept for later ones that begin alike
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deployments.engines import EmbeddedEngine
from deployments.files.hashes import read_sha256
from deployments.places import drafter_source
from deployments.spec import DeploymentSpec, SpecError
from deployments.speculation import PlannedSpeculation
from engine.manifest import MANIFEST_NAME, SPECULATOR_MANIFEST_NAME
from engine.planned import drafting, plan_of

_LENGTH = 16  # hexadecimal digits that are kept of a hash
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a deployment from others; `weights` is None where they are not at hand."""

    deployment: str
    spec: str
    weights: str | None

    def parameters(self, *, prefix_cache: bool) -> dict[str, str]:
        """As parameters of a Triton model."""
        found = {"drafthouse_deployment": self.deployment, "drafthouse_spec": self.spec}
        if self.weights is not None:
            found["drafthouse_weights"] = self.weights
        return {**found, "drafthouse_prefix_cache": str(prefix_cache).lower()}


def identity(spec: DeploymentSpec, engine_directory: Path | None = None) -> Identity:
    """Who the deployment of a spec is.

    Args:
        spec: the deployment.
        engine_directory: where its compiled target lies, if not where the spec says (embedded engine).
    """
    asked = spec.model_dump(mode="json", include={"target", "engine", "speculation"}, exclude_defaults=True)
    if plan_of(spec) is not None and isinstance(spec.speculation, PlannedSpeculation):
        asked["speculation"] = {"plan": read_sha256(spec.speculation.plan)}  # not where it lies
    embedded = isinstance(spec.engine, EmbeddedEngine)
    weights = _compiled(spec, engine_directory) if embedded else _checkpoints(spec)
    return Identity(spec.name, _short(json.dumps(asked, sort_keys=True)), weights)


def _compiled(spec: DeploymentSpec, engine_directory: Path | None) -> str | None:
    """By what the networks say that they were compiled from; None if one of them is not here."""
    try:
        engine = engine_directory or spec.engine_directory
        directories = [engine]
        directories += [
            engine.with_name(each.speculator_directory.name)
            for each in drafting(spec)
            if drafter_source(each.speculation) is not None
        ]
    except SpecError:  # the model is not here
        return None
    found = [_source(directory) for directory in directories]
    return None if None in found else _short("\n".join(map(str, found)))


def _source(directory: Path) -> str | None:
    """The hash of what a network was compiled from, by its manifest."""
    for name in (MANIFEST_NAME, SPECULATOR_MANIFEST_NAME):
        if (directory / name).is_file():
            try:
                return str(json.loads((directory / name).read_bytes())["source_sha256"])
            except (ValueError, KeyError, TypeError):  # damaged, as whoever loads it will say
                return None
    return None


def _checkpoints(spec: DeploymentSpec) -> str | None:
    """By samples of the checkpoints, which may have hundreds of gigabytes; None if one of them is not here."""
    named = spec.target.model, drafter_source(spec.speculation)
    directories = [path for path in named if path is not None]
    if not all(directory.is_dir() for directory in directories):
        return None
    return _short("\n".join(line for directory in directories for line in _sampled(directory)))


def _sampled(directory: Path) -> Iterator[str]:
    """Name, size, and hash of pieces spread over each file."""
    for path in sorted(directory.iterdir()):
        if not path.is_file() or path.name.startswith("."):
            continue
        size, digest = path.stat().st_size, hashlib.sha256()
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
        yield f"{path.name} {size} {digest.hexdigest()}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]
