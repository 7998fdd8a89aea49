"""Whether this machine can hold what the embedded engine puts into it: an estimate, with its arithmetic.

    weights   = numbers x bytes (int8: 1 and 4 for each row; fp32: 4) x copies
    copies    = 1 as read, 1 packed for steps of any size, and of what OpenVINO multiplies (fp32, int8 with VNNI) 1
                packed for each size of `engine.buckets`
    KV cache  = 2 x layers x KV heads x (head size x bytes, and 4 for the scale in int8) x tokens of all requests
    the rest  = Triton and four Python processes

Weights and copies were compared with the resident memory of a process that had opened SmolLM2-135M on OpenVINO: int8
130 MiB x 8 + 0.3 GiB = 1.3 GiB, found 1.33, and without VNNI 130 MiB x 2 + 0.3 GiB = 0.55, found 0.55; fp32
514 MiB x 5 + 0.3 GiB = 2.8 GiB, found 2.72. Pages of the cache are taken when requests first use them.
"""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from build.graph.mixed_bits import LayerBits, matrix_shapes
from build.targets.architecture import Architecture
from deployments.engines import EmbeddedEngine, Precision
from deployments.findings import Finding
from deployments.places import drafter_source
from deployments.spec import DeploymentSpec
from deployments.speculation import LowBit
from engine.attention_kernels import Attention, chosen_precision
from engine.buckets import buckets_for
from engine.grouped_weights import can_be_grouped, eight_bit_bytes, four_bit_bytes
from engine.linear_layers import on_the_kernel
from engine.native.library import row_bytes
from engine.planned import drafting

GIB = 2**30
_REST_GIB = 1.0
# Control groups of version 2 and 1: the limit of a container.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_findings(spec: DeploymentSpec, target: Architecture) -> Iterator[Finding]:
    """The estimate as a note, and as an error if the machine has less."""
    engine = spec.embedded
    if engine.backend != "openvino":
        return
    weights = compiled_bytes(target, engine.precision)
    copied = _copied_bytes(target, engine)
    buckets = len(buckets_for(copied))
    packed = 2 * weights + buckets * copied
    slots, length = engine.max_batch_size, engine.max_sequence_length
    token = _cache_bytes(target, engine)
    drafter = drafter_bytes(spec, target) * (2 + len(buckets_for(weights)))
    held = packed + drafter + _REST_GIB * GIB
    total, here = held + token * slots * length, machine_bytes()
    lines = [
        f"weights: {_gib(weights)} x 2 copies, {_gib(copied)} x {buckets} more = {_gib(packed)}",
        *([f"drafter: about {_gib(drafter)}"] if drafter else []),
        f"KV cache: {token} B a token x {length} tokens x {slots} requests = {_gib(token * slots * length)}",
        f"Triton and its processes: about {_gib(_REST_GIB * GIB)}",
        f"all: {_gib(total)}, of {_gib(here)} that this machine has",
    ]
    if total <= here:
        yield Finding("memory", "note", "\n".join(lines))
        return
    fitting = math.floor((here - held) / (token * length))
    right = f"engine.max_batch_size: {fitting}" if fitting > 0 else "a smaller model"
    smaller = {"fp32": ", or precision: int8", "int8": ", or precision: int4"}.get(engine.precision, "")
    shorter = ", or a smaller engine.max_sequence_length" if held < here else ""
    yield Finding("memory", "error", "\n".join(lines), right + shorter + smaller)


def disk_findings(spec: DeploymentSpec, target: Architecture) -> Iterator[Finding]:
    """An error if the engine is not there and its disk has no room for it."""
    directory = spec.engine_directory
    if directory.exists():
        return
    needed = compiled_bytes(target, spec.embedded.precision) + drafter_bytes(spec, target)
    place = next(path for path in directory.absolute().parents if path.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        yield Finding(
            "disk",
            "error",
            f"{place} has {_gib(free)} free, the compiled engine takes {_gib(needed)}",
            "more room there, or another working directory",
        )


def compiled_bytes(architecture: Architecture, precision: Precision) -> int:
    """Bytes of the compiled weights."""
    shapes = architecture.parameter_shapes()
    return sum(_matrix_bytes(name, shape, precision) for name, shape in shapes.items())


def _matrix_bytes(name: str, shape: tuple[int, ...], precision: Precision) -> int:
    bits = _bits(name, shape, precision)
    if bits == 32:
        return 4 * math.prod(shape)
    return four_bit_bytes(shape) if bits == 4 else eight_bit_bytes(shape)


def _bits(name: str, shape: tuple[int, ...], precision: Precision) -> int:
    if precision == "fp32" or len(shape) == 1:
        return 32
    in_layers = name.startswith("model.layers.") and can_be_grouped(shape)
    return 4 if precision == "int4" and in_layers else 8


def _copied_bytes(architecture: Architecture, engine: EmbeddedEngine) -> int:
    """Of the weights that are packed for each size of a step: those that the kit's kernel does not multiply."""
    native = on_the_kernel(_attention(engine))
    looked_up = set() if architecture.tie_word_embeddings else {"model.embed_tokens.weight"}
    return sum(
        _matrix_bytes(name, shape, engine.precision)
        for name, shape in architecture.parameter_shapes().items()
        if name in looked_up
        or _bits(name, shape, engine.precision) not in native
        or not can_be_grouped(shape)
    )


def machine_bytes() -> int:
    """Memory that this process may use: the machine's, or the limit of its control group."""
    limits = [int(text) for path in _LIMITS if (text := _read(path)).isdigit()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _cache_bytes(architecture: Architecture, engine: EmbeddedEngine) -> int:
    """Of one token's keys and values."""
    row = row_bytes(architecture.head_dim, chosen_precision(_attention(engine), engine.precision))
    return 2 * architecture.num_layers * architecture.num_kv_heads * row


def _attention(engine: EmbeddedEngine) -> Attention:
    return Attention(engine.attention_kernel, engine.kv_cache_precision)


def drafter_bytes(spec: DeploymentSpec, target: Architecture) -> int:
    """About those of the compiled drafters: half of what is stored, in 16 bit, for int8."""
    return sum(_stored_bytes(each, target) for each in drafting(spec))


def _stored_bytes(spec: DeploymentSpec, target: Architecture) -> int:
    if isinstance(spec.speculation, LowBit):
        return compiled_bytes(target, spec.speculator_precision) + _beyond_four_bits(spec.speculation, target)
    source = drafter_source(spec.speculation)
    if source is None or not source.is_dir():
        return 0
    kinds = (".safetensors", ".bin", ".pt", ".pth")
    stored = sum(path.stat().st_size for path in source.iterdir() if path.suffix in kinds)
    return stored * 2 if spec.speculator_precision == "fp32" else stored // 2


def _beyond_four_bits(section: LowBit, target: Architecture) -> int:
    """Of matrices in eight bits, or of both factors of each layer's correction."""
    if section.bits_per_weight is not None:
        bits = LayerBits.of(target)
        return math.ceil((min(section.bits_per_weight * bits.weights, bits.most) - bits.least) / 8)
    rank = section.rank
    return sum(
        eight_bit_bytes((out, rank)) + eight_bit_bytes((rank, inputs))
        for out, inputs in (matrix_shapes(target).values() if rank else ())
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
