"""Whether a GPU can hold what a deployment puts on it: an estimate, with its arithmetic.

Per GPU, with TP and PP the tensor and pipeline parallelism of a model::

    weights   = parameters x bytes of the quantisation / (TP x PP); embedding and output matrix stay in 16 bit
    KV cache  = 2 x layers / PP x ceil(KV heads / TP) x head size x bytes, for each token (keys and values)
                layers / PP x (latent rank + rotary size) x bytes with multi-head latent attention
    workspace = max_num_tokens x (4 x hidden + 2 x MLP width / TP) x 2 bytes          activations of one layer
              + max_batch_size x (draft tokens + 1) x vocabulary x 4 bytes / TP       logits in fp32
              + 1.5 GiB                                                               CUDA context, NCCL, libraries

Weights and KV cache follow from the model. The workspace is a rule of thumb of this kit's for what TensorRT-LLM's
documentation (reference/memory.md) lists as activations and input and output tensors; runs differ from it.
"""

import math
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from build.targets.errors import TargetError
from build.trtllm.checks.checkpoints import HuggingFaceCheckpoint
from build.trtllm.methods.table import draft_tokens, drafter_directory, method_of
from build.trtllm.resolved import Resolved
from deployments.findings import Finding

GIB = 2**30
_BYTES = {"none": 2.0, "fp8": 1.0, "int4_awq": 0.5 + 2 / 128}  # AWQ: a 16-bit scale for each group of 128
_FIXED_GIB = 1.5
_SECONDS = 30


@dataclass(frozen=True)
class Resident:
    """One model on one GPU."""

    name: str
    weights: float
    weights_told: str
    kv_token: float
    kv_token_told: str
    kv_tokens: int
    """Tokens of one request that stay in its cache."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What one GPU has to hold, in bytes, and whether it can."""

    residents: tuple[Resident, ...]
    workspace: float
    workspace_told: str
    gpu: float | None
    fraction: float
    requests: int
    """Requests that may run at once."""

    @property
    def fixed(self) -> float:
        """Weights and workspace."""
        return sum(resident.weights for resident in self.residents) + self.workspace

    @property
    def request(self) -> float:
        """KV cache of one request of full length."""
        return sum(resident.kv_token * resident.kv_tokens for resident in self.residents)

    @property
    def cache(self) -> float | None:
        """KV cache that the fraction leaves; None without the GPU's size."""
        return None if self.gpu is None else max(0.0, self.gpu - self.fixed) * self.fraction

    def arithmetic(self) -> str:
        """Every number with where it comes from, a line each."""
        lines = [
            f"{item.name} weights: {item.weights_told} = {_gib(item.weights)}" for item in self.residents
        ]
        lines.append(f"workspace: {self.workspace_told} = {_gib(self.workspace)} (a rule of thumb)")
        lines += [
            f"{item.name} KV cache of a request of {item.kv_tokens} tokens: {item.kv_token_told} = "
            f"{item.kv_token:.0f} B a token, {_gib(item.kv_token * item.kv_tokens)}"
            for item in self.residents
            if item.kv_token
        ]
        if self.gpu is None or self.cache is None:
            return "\n".join([*lines, "GPU memory is unknown: give engine.gpu_memory_gib"])
        left = f"left for KV cache: ({_gib(self.gpu)} - {_gib(self.fixed)}) x {self.fraction} = {_gib(self.cache)}"
        if self.request:
            share = f"{self.cache / self.request:.1f} requests of full length"
            left += f": {share}, of {self.requests} that may run at once"
        return "\n".join([*lines, left])


def memory_findings(resolved: Resolved) -> Iterable[Finding]:
    """The estimate as a note, and as an error where not even one request fits."""
    gpu = resolved.engine.gpu_memory_gib or smallest_gpu_gib()
    lacking = ""
    try:
        _draft(resolved)
    except TargetError as error:
        lacking = f" (without the drafter: {error})"
    try:
        estimates = estimate(resolved, gpu, with_draft=not lacking)
    except TargetError as error:
        yield Finding("gpu-memory-unknown", "note", f"no estimate of GPU memory: {error}")
        return
    for item in estimates:
        held = " and ".join(resident.name for resident in item.residents) + lacking
        if item.gpu is not None and item.cache is not None and item.cache < item.request:
            yield Finding(
                "gpu-memory",
                "error",
                f"a GPU of {_gib(item.gpu)} cannot hold {held} and the KV cache of one request:\n{item.arithmetic()}",
                "quantise, raise engine.tensor_parallel, or lower max_sequence_length or max_num_tokens",
                "TensorRT-LLM docs, reference/memory.md",
            )
        else:
            yield Finding("gpu-memory", "note", f"{held} on each GPU:\n{item.arithmetic()}")


def estimate(
    resolved: Resolved, gpu_gib: float | None, *, with_draft: bool = True
) -> tuple[MemoryEstimate, ...]:
    """What one GPU of each group holds: one group, or two if the draft has GPUs of its own.

    Args:
        resolved: the deployment.
        gpu_gib: memory of a GPU; None: not known.
        with_draft: count the draft; one that is not there cannot be.

    Raises:
        TargetError: a checkpoint is missing or does not say what is needed.
    """
    engine = resolved.engine
    target, draft = _target(resolved), _draft(resolved) if with_draft else None
    target_gpus, draft_gpus = engine.launch.gpu_device_ids, engine.draft.gpu_device_ids
    apart = draft is not None and draft_gpus is not None and set(draft_gpus).isdisjoint(target_gpus or (0,))
    groups = [(target,), (draft,)] if apart and draft else [(target, draft) if draft else (target,)]
    workspace, told = _workspace(resolved)
    return tuple(
        MemoryEstimate(
            residents=group,
            workspace=workspace,
            workspace_told=told,
            gpu=None if gpu_gib is None else gpu_gib * GIB,
            fraction=engine.kv_cache.free_gpu_memory_fraction,
            requests=engine.max_batch_size,
        )
        for group in groups
    )


def smallest_gpu_gib() -> float | None:
    """Memory of the smallest GPU here, by `nvidia-smi`; None without one, or an answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        answer = subprocess.run(
            [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=False, timeout=_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):  # a driver that is broken, or hangs
        return None
    sizes = [int(line) for line in answer.stdout.split() if line.isdigit()]
    return min(sizes) / 1024 if sizes and answer.returncode == 0 else None


@dataclass(frozen=True)
class _Loading:
    """How a model is loaded: precision of weights and KV cache, and over how many GPUs."""

    quantization: str
    kv_bytes: int
    tensor_parallel: int
    pipeline_parallel: int


def _target(resolved: Resolved) -> Resident:
    engine = resolved.engine
    return _resident("target", resolved.spec.target.model, _loading(resolved), engine.max_sequence_length)


def _draft(resolved: Resolved) -> Resident | None:
    """The draft, whatever it is: a model, a head, or the target once more; None if nothing is loaded for it."""
    engine = resolved.engine
    directory = drafter_directory(resolved.spec)
    if directory is None:
        return None
    loading = replace(_loading(resolved), quantization="none")
    if resolved.support.drafting == "draft_engine":
        loading = replace(
            loading,
            quantization=engine.draft.quantization or engine.quantization,
            tensor_parallel=engine.draft.tensor_parallel or engine.tensor_parallel,
            pipeline_parallel=1,
        )
    window = method_of(resolved).engines.draft_window(resolved.speculation)
    return _resident(
        "draft", directory, loading, min(engine.max_sequence_length, window or engine.max_sequence_length)
    )


def _loading(resolved: Resolved) -> _Loading:
    engine = resolved.engine
    kv_bytes = 1 if engine.kv_cache.dtype == "fp8" else 2
    return _Loading(engine.quantization, kv_bytes, engine.tensor_parallel, engine.pipeline_parallel)


def _resident(name: str, directory: Path, loading: _Loading, tokens: int) -> Resident:
    checkpoint = HuggingFaceCheckpoint(directory)
    weights = checkpoint.weights
    if weights is None:
        raise TargetError(
            f"{directory} has no weights (*.safetensors, *.bin or *.pt), which tell the number of parameters"
        )
    ranks = loading.tensor_parallel * loading.pipeline_parallel
    split = f" / {ranks} GPUs" if ranks > 1 else ""
    if loading.quantization == "none":
        total, told = (
            float(weights.num_bytes),
            f"{weights.parameters / 1e9:.2f}e9 parameters as stored, 16 bit at most",
        )
    else:
        inner, size = weights.parameters - weights.embeddings, _BYTES[loading.quantization]
        total = inner * size + weights.embeddings * 2
        told = f"({inner / 1e9:.2f}e9 x {size:.2f} B + {weights.embeddings / 1e9:.2f}e9 x 2 B)"
    return Resident(name, total / ranks, told + split, *_kv_token(checkpoint, loading), tokens)


def _kv_token(checkpoint: HuggingFaceCheckpoint, loading: _Loading) -> tuple[float, str]:
    """Bytes of one token's keys and values on one GPU."""
    size = loading.kv_bytes
    layers, heads = checkpoint.num_layers, checkpoint.number("num_attention_heads", "n_head")
    if not layers or not heads or not checkpoint.hidden_size:
        return 0.0, "no attention layers"
    layers = math.ceil(layers / loading.pipeline_parallel)
    latent = checkpoint.number("kv_lora_rank")
    if latent is not None:
        rotary = checkpoint.number("qk_rope_head_dim") or 0
        return float(layers * (latent + rotary) * size), f"{layers} layers x ({latent} + {rotary}) x {size} B"
    kv_heads = math.ceil((checkpoint.number("num_key_value_heads") or heads) / loading.tensor_parallel)
    head = checkpoint.number("head_dim") or checkpoint.hidden_size // heads
    return (
        float(2 * layers * kv_heads * head * size),
        f"2 x {layers} layers x {kv_heads} KV heads x {head} x {size} B",
    )


def _workspace(resolved: Resolved) -> tuple[float, str]:
    engine = resolved.engine
    target = HuggingFaceCheckpoint(resolved.spec.target.model)
    hidden = target.hidden_size or 0
    width = (target.number("intermediate_size", "n_inner") or 4 * hidden) // engine.tensor_parallel
    rows = engine.max_batch_size * (draft_tokens(resolved.speculation) + 1)
    vocabulary = math.ceil((target.vocab_size or 0) / engine.tensor_parallel)
    total = engine.max_num_tokens * (4 * hidden + 2 * width) * 2 + rows * vocabulary * 4 + _FIXED_GIB * GIB
    told = (
        f"{engine.max_num_tokens} tokens x (4 x {hidden} + 2 x {width}) x 2 B + {rows} rows x {vocabulary} x 4 B "
        f"+ {_FIXED_GIB} GiB"
    )
    return total, told


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
