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
from deployments.spec import DeploymentSpec
from engine.manifest import MANIFEST_NAME, SPECULATOR_MANIFEST_NAME

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
    if isinstance(spec.engine, EmbeddedEngine):
        engine = engine_directory or spec.engine_directory
        weights = _compiled(engine, engine.with_name(spec.speculator_directory.name))
    else:
        weights = _checkpoints(spec)
    return Identity(spec.name, _short(json.dumps(asked, sort_keys=True)), weights)


def _compiled(*directories: Path) -> str | None:
    """By the manifests' hashes of what the networks were compiled from."""
    names = (MANIFEST_NAME, SPECULATOR_MANIFEST_NAME)
    manifests = [directory / name for directory in directories for name in names]
    found = [
        str(json.loads(manifest.read_bytes()).get("source_sha256"))
        for manifest in manifests
        if manifest.is_file()
    ]
    return _short("\n".join(found)) if found else None


def _checkpoints(spec: DeploymentSpec) -> str | None:
    """By samples of the checkpoints, which may have hundreds of gigabytes; None if the target is not here."""
    drafters = (getattr(spec.speculation, name, None) for name in ("checkpoint", "model"))
    directories = [path for path in (spec.target.model, *drafters) if path is not None and path.is_dir()]
    if spec.target.model not in directories:
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
