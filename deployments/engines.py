"""The spec's `engine` section: the embedded engine, TensorRT-LLM or vLLM; chosen by the key `kind`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from deployments.free_form import FreeForm
from deployments.section import Section

Precision = Literal["int4", "int8", "fp32"]
"""Of weights on the embedded engine."""


class EmbeddedEngine(Section):
    """The kit's own engine, on a CPU or through PyTorch on a CUDA device."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "quantization": "the embedded engine has precision (int4, int8 or fp32)"
    }

    kind: Literal["embedded"] = "embedded"
    backend: Literal["openvino", "torch"] = Field(
        "openvino",
        description="What runs the compiled graphs: OpenVINO on the CPU, or PyTorch (to be installed) on a CUDA "
        "device: bf16 but for fp32 engines, steps as CUDA graphs, one read of the cache for all tokens of a request; "
        "output with and without speculation agrees up to rounding there.",
    )
    precision: Precision = Field(
        "int8",
        description="Weights: int8 per output channel; int4 in groups of 32 (of a Q4_1 file as they are), or fp32.",
    )
    max_batch_size: int = Field(16, ge=1, le=256, description="Requests that run at once.")
    max_sequence_length: int = Field(2048, ge=64, description="Prompt and output of one request, in tokens.")
    max_queue_size: int = Field(64, ge=0, description="Requests that wait; one more is refused.")
    max_queue_seconds: float | None = Field(
        None,
        gt=0,
        description="A request that has waited this many seconds is refused as if the queue were full.",
    )
    max_request_seconds: float | None = Field(
        None,
        gt=0,
        description="A request that has not ended this many seconds after it came ends with an error.",
    )
    max_one_shot_tokens: int | None = Field(
        None,
        ge=0,
        description="Most `max_tokens` of a request that is not streamed, of which nobody notices that its client has "
        "gone; 0: streams only.",
    )
    prefill_chunk: int = Field(
        128, ge=8, description="Prompt tokens a step takes in beside requests that decode."
    )
    idle_prefill_chunk: int = Field(
        256,
        ge=8,
        description="Prompt tokens a step takes in while no request decodes: reads a quarter faster than 128, "
        "and nobody waits for his next token.",
    )
    kv_cache_reuse: bool = Field(
        True,
        description="Keep the KV cache of ended requests for later ones that begin alike; off: no request's "
        "timing tells what others asked, the cache touches no more memory than requests need at once, and load "
        "tests with repeated prompts measure every prompt as new.",
    )
    kv_cache_sharing: Literal["all", "salted"] = Field(
        "all",
        description="Whose requests share kept KV cache. all: those of the same `cache_salt`, and those without one; "
        "salted: a request without one shares nothing, so that no tenant of a service finds out by the time to the "
        "first token, or by `kv_cache_reused_blocks`, what another has asked.",
    )
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0 takes every core.")
    attention_kernel: Literal["native", "openvino"] | None = Field(
        None,
        description="native: the kit's own, which reads the cache once for all tokens of a request (compiled by `make "
        "setup`; AVX2 or AVX-512); openvino: OpenVINO's. none: native where it runs.",
    )
    kv_cache_precision: Literal["fp32", "fp16", "int8"] | None = Field(
        None,
        description="int8 has a scale for each row and head, and is the native kernel's alone. none: int8 beside int8 "
        "weights (fp16 on OpenVINO's kernel), fp32 beside fp32.",
    )

    @model_validator(mode="after")
    def _attention_is_openvino_s(self) -> "EmbeddedEngine":
        given = [key for key in ("attention_kernel", "kv_cache_precision") if getattr(self, key) is not None]
        if given and self.backend == "torch":
            raise ValueError(
                f"{' and '.join(given)}: of backend openvino; PyTorch has its own attention and an fp32 cache"
            )
        if self.attention_kernel == "openvino" and self.kv_cache_precision == "int8":
            raise ValueError(
                "kv_cache_precision int8 needs attention_kernel native; openvino has fp16 and fp32"
            )
        return self


class KvCache(Section):
    """TensorRT-LLM's KV cache."""

    free_gpu_memory_fraction: float = Field(
        0.9, gt=0, lt=1, description="Share of the memory left after the weights; divided among the models."
    )
    block_reuse: bool = Field(True, description="Keep prompts' blocks for later requests.")
    dtype: Literal["auto", "fp8"] = Field(
        "auto", description="Type of the rows; auto: that of the activations."
    )
    host_memory_gib: float | None = Field(None, gt=0, description="Host memory that blocks are moved to.")


class DraftEngine(Section):
    """What a second engine (draft model, windowed self-drafting) has of its own; the rest is the target's."""

    quantization: Literal["none", "fp8", "int4_awq"] | None = Field(
        None, description="Of its weights; none: as the target's."
    )
    tensor_parallel: PositiveInt | None = Field(None, description="GPUs that share it; none: as the target.")
    gpu_device_ids: tuple[int, ...] | None = Field(None, description="Its GPUs; none: the target's.")


class Launch(Section):
    """How tritonserver is started."""

    mode: Literal["single", "leader", "orchestrator", "multi_node"] | None = Field(
        None, description="none: single for one GPU, leader (MPI) for several."
    )
    gpu_device_ids: tuple[int, ...] | None = Field(None, description="GPUs of the target; none: the first.")
    hosts: tuple[str, ...] = Field((), description="multi_node: one host a node, the leader first.")


class Images(Section):
    """Container images instead of those pinned for the release line."""

    build: str | None = Field(None, description="Converts and compiles.")
    triton: str | None = Field(None, description="Serves.")
    examples: str | None = Field(
        None, description="TensorRT-LLM's examples in the build image; none: where NVIDIA's images have them."
    )


class TensorRtLlmEngine(Section):
    """TensorRT-LLM in NVIDIA's containers."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "precision": "TensorRT-LLM has quantization (fp8 or int4_awq), and dtype (float16 or bfloat16) for the rest"
    }

    kind: Literal["tensorrt_llm"]
    line: Literal["A", "B", "auto"] = Field(
        "auto", description="Release line: A is 1.2.1, B is 1.3.0rc21 and newer; auto asks the container."
    )
    runtime: Literal["engines", "llm_api"] | None = Field(
        None, description="Compiled engines (line A) or the LLM API; none: what the method has on the line."
    )
    dtype: Literal["float16", "bfloat16"] = Field(
        "bfloat16", description="Type of activations, and of weights that are not quantised."
    )
    quantization: Literal["none", "fp8", "int4_awq"] = Field("none", description="Of the target's weights.")
    tensor_parallel: PositiveInt = Field(1, description="GPUs that share every layer.")
    pipeline_parallel: PositiveInt = Field(1, description="Groups of GPUs that take layers in turn.")
    max_batch_size: int = Field(64, ge=1, le=2048, description="Requests that run at once.")
    max_input_length: PositiveInt = Field(4096, description="Tokens of a prompt.")
    max_sequence_length: PositiveInt = Field(8192, description="Prompt and output of one request, in tokens.")
    max_num_tokens: PositiveInt = Field(8192, description="Tokens of a step, all requests together.")
    max_queue_size: int = Field(0, ge=0, description="Requests that wait in Triton; 0: no limit.")
    guided_decoding: Literal["xgrammar"] | None = Field(
        None, description="What keeps output to a grammar or JSON schema that a request gives."
    )
    gpu_memory_gib: float | None = Field(
        None, gt=0, description="Memory of one GPU, for the estimate before building; none: asked of the GPU."
    )
    kv_cache: KvCache = KvCache()
    draft: DraftEngine = DraftEngine()
    launch: Launch = Launch()
    images: Images = Images()
    calibration_dataset: str | None = Field(
        None,
        description="Hub name or directory of the data that quantisation calibrates on; none: quantize.py's own.",
    )
    workspace: Path = Field(Path("runs/trtllm"), description="Checkpoints, engines, logs of the build.")
    build_flags: dict[str, str] = Field(
        {},
        description="More flags of `trtllm-build`, without the dashes; an empty value for those that take none.",
    )
    triton_parameters: dict[str, dict[str, str]] = Field(
        {}, description="Parameters of config.pbtxt by model; they override what the kit sets."
    )
    llm_args: FreeForm = Field({}, description="More arguments of the LLM API, checked by its schema.")

    @model_validator(mode="after")
    def _lengths_fit(self) -> "TensorRtLlmEngine":
        if self.max_input_length > self.max_sequence_length:
            raise ValueError(
                f"max_input_length {self.max_input_length} must not exceed "
                f"max_sequence_length {self.max_sequence_length}"
            )
        return self

    @property
    def precision(self) -> str:
        """What the weights are in: the quantisation, or the type if there is none."""
        return self.dtype if self.quantization == "none" else self.quantization


class VllmEngine(Section):
    """vLLM behind Triton's Python backend: in NVIDIA's image with vLLM, or on a CPU in an environment of its own."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "precision": "vLLM has dtype, and quantization by its own names",
        "gpu_memory_utilization": "it is memory_fraction here",
        "max_model_len": "it is max_sequence_length here",
        "max_num_seqs": "it is max_batch_size here",
    }

    kind: Literal["vllm"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Weights and arithmetic; auto: what the model's files say."
    )
    quantization: str | None = Field(
        None, description="vLLM's name of a quantisation; none: the model's own."
    )
    tensor_parallel: PositiveInt = Field(1, description="Devices that share each layer.")
    pipeline_parallel: PositiveInt = Field(
        1, description="Groups of devices that the layers are spread over."
    )
    max_batch_size: int = Field(64, ge=1, le=2048, description="Requests that run at once.")
    max_sequence_length: PositiveInt = Field(2048, description="Prompt and output of one request, in tokens.")
    max_num_tokens: PositiveInt | None = Field(
        None, description="Tokens of a step, all requests together; none: vLLM's choice."
    )
    max_queue_size: int = Field(0, ge=0, description="Requests that wait in Triton; 0: no limit.")
    memory_fraction: float = Field(
        0.9, gt=0, le=1, description="Share of the device's memory for weights and KV cache."
    )
    kv_cache_gib: float | None = Field(
        None, gt=0, description="Memory of the KV cache; none: what memory_fraction leaves."
    )
    kv_cache_reuse: bool = Field(
        True, description="Keep the KV cache of prompts for later ones that begin alike."
    )
    enforce_eager: bool = Field(
        False, description="Neither compile nor capture graphs: starts sooner, runs slower."
    )
    triton_parameters: dict[str, dict[str, str]] = Field(
        {}, description="Parameters of config.pbtxt by model; they override what the kit sets."
    )
    arguments: FreeForm = Field(
        {}, description="More arguments of vLLM's AsyncEngineArgs, checked by the installed release."
    )

    @property
    def precision(self) -> str:
        """What the weights are in."""
        return self.quantization or self.dtype


def _kind(value: Any) -> str | None:
    return value.get("kind", "embedded") if isinstance(value, dict) else getattr(value, "kind", None)


AnyEngine = Annotated[
    Annotated[EmbeddedEngine, Tag("embedded")]
    | Annotated[TensorRtLlmEngine, Tag("tensorrt_llm")]
    | Annotated[VllmEngine, Tag("vllm")],
    Discriminator(_kind),
]
