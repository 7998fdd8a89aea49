"""What measured costs and acceptance belong to: another model, machine or kit has others.

Example::

    here = Fingerprint.of(spec)                 # stands in profile.json and in plan.json
    measured.differences(here)                  # ["threads was 2, is 8"]
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from deployments.drafting import Speculation
from deployments.engines import EmbeddedEngine
from deployments.files.hashes import content_hash
from deployments.places import ENGINE_FORMAT, drafter_source, source_hash
from deployments.spec import DeploymentSpec
from deployments.speculation import AnySpeculation

# When drafts are made is what a plan decides.
_DECIDED = set(Speculation.model_fields)
_MACHINE = ("threads", "processor", "kit")
_DIGITS = 12  # of hashes, where people read them


class Fingerprint(BaseModel):
    """Of a deployment's engine on this machine; all of it decides what a step costs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    model_sha256: str
    precision: str
    attention: str
    """Kernel and precision of the cache, as far as the spec gives one; or the backend that has its own."""
    threads: int
    processor: str
    kit: str

    @classmethod
    def of(cls, spec: DeploymentSpec) -> Fingerprint:
        """The deployment as it would run here and now.

        Raises:
            EngineError: its attention kernel cannot be had.
            OSError: the model cannot be read.
            SpecError: it is for another engine.
        """
        engine = spec.embedded
        return cls(
            model=spec.target.model.name,
            model_sha256=content_hash(spec.target.model),
            precision=engine.precision,
            attention=_attention(engine),
            threads=engine.threads or len(os.sched_getaffinity(0)),
            processor=processor(),
            kit=f"drafthouse {_version('drafthouse')}, engine format {ENGINE_FORMAT}, openvino {_version('openvino')}, "
            f"kernel {_kernel()}",
        )

    def elsewhere(self, here: Fingerprint) -> Fingerprint:
        """The same deployment where another one runs: what decides what its steps cost and not what they bring."""
        return self.model_copy(update={name: getattr(here, name) for name in _MACHINE})

    def differences(self, here: Fingerprint) -> list[str]:
        """What is not the same here, in words."""
        pairs = ((name, getattr(self, name), getattr(here, name)) for name in type(self).model_fields)
        return [
            f"{name} was {_told(name, was)}, is {_told(name, now)}" for name, was, now in pairs if was != now
        ]


def drafter_identity(speculation: AnySpeculation) -> dict[str, Any]:
    """What of a section decides its drafts, and the content of its weights or texts.

    Raises:
        OSError: these cannot be read.
    """
    source = drafter_source(speculation)
    settings = speculation.model_dump(mode="json", exclude_none=True, exclude=_DECIDED)
    return {**settings, "weights_sha256": source_hash(source) if source else None}


def drafter_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not the same in two identities, in words."""
    return [
        f"speculation.{key} was {_told(key, was.get(key))}, is {_told(key, now.get(key))}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    ]


def processor() -> str:
    """Its name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _attention(engine: EmbeddedEngine) -> str:
    if engine.backend == "torch":
        return "torch"
    # OpenVINO takes half a second to import.
    from engine.attention_kernels import Attention, chosen_kernel

    kernel = chosen_kernel(Attention(engine.attention_kernel, engine.kv_cache_precision))
    return f"{kernel}, cache {engine.kv_cache_precision or 'as the weights'}"


def _kernel() -> str:
    """Of what sources the kernel is that runs here."""
    # OpenVINO takes half a second to import.
    from engine.native.build import library_path
    from engine.native.library import instructions

    return library_path().stem.rpartition("-")[2] if instructions() else "none"


def _told(name: str, value: object) -> str:
    return str(value)[:_DIGITS] if name.endswith("sha256") else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
