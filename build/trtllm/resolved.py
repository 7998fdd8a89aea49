"""A deployment on TensorRT-LLM with nothing left open: what all generators of this package work from."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from build.trtllm.releases import ReleaseLine, Runtime
from deployments.engines import TensorRtLlmEngine
from deployments.spec import DeploymentSpec
from deployments.speculation import AnySpeculation

# tutorials, Feature_Guide/Speculative_Decoding/TRT-LLM (Triton's image); docker/Dockerfile.multi (release image).
_EXAMPLES_TRITON, _EXAMPLES_RELEASE, _RELEASE_IMAGE = (
    "/app/examples",
    "/app/tensorrt_llm/examples",
    "tensorrt-llm/release",
)

Drafting = Literal["none", "in_model", "draft_engine", "bls", "user_drafter"]
FROM_OUTSIDE = ("draft_engine", "bls")
"""Drafts that the kit's BLS sends to the target's engine call by call."""


@dataclass(frozen=True)
class Supported:
    """How a method runs on a release line and runtime.

    Attributes:
        drafting: who drafts. `in_model`: the target's engine or the LLM API itself; `draft_engine`: a second
            engine that the kit's BLS calls; `bls`: an n-gram drafter within the kit's BLS; `user_drafter`: the
            kit's drafter object, handed to the LLM API by the kit's `llmapi` model.
        build_mode: `trtllm-build --speculative_decoding_mode` of the target; none outside engines.
        decoding_mode: parameter `decoding_mode` of the `tensorrt_llm` model; none: not set.
    """

    drafting: Drafting
    build_mode: str | None = None
    decoding_mode: str | None = None


@dataclass(frozen=True)
class Resolved:
    """A deployment on TensorRT-LLM with nothing left open: release line and runtime are known and have its method.

    The paths say where the build puts things; `draft_engine` is None without a second engine, and the engine
    paths mean nothing with the LLM API.
    """

    spec: DeploymentSpec
    line: ReleaseLine
    runtime: Runtime
    support: Supported

    @property
    def engine(self) -> TensorRtLlmEngine:
        return self.spec.tensorrt_llm

    @property
    def speculation(self) -> AnySpeculation:
        return self.spec.speculation

    @property
    def method(self) -> str:
        return self.spec.speculation.method

    @property
    def triton_image(self) -> str:
        return self.engine.images.triton or self.line.triton_image

    @property
    def build_image(self) -> str:
        return self.engine.images.build or self.line.build_image

    @property
    def examples(self) -> PurePosixPath:
        """TensorRT-LLM's examples in the build image."""
        if self.engine.images.examples is not None:
            return PurePosixPath(self.engine.images.examples)
        return PurePosixPath(_EXAMPLES_RELEASE if _RELEASE_IMAGE in self.build_image else _EXAMPLES_TRITON)

    @property
    def workspace(self) -> Path:
        """Directory of this deployment's checkpoints and engines."""
        return self.engine.workspace / self.spec.name

    @property
    def target_engine(self) -> Path:
        return self.workspace / "target-engine"

    @property
    def draft_engine(self) -> Path | None:
        return self.workspace / "draft-engine" if self.support.drafting == "draft_engine" else None
