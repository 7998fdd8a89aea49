"""Whether what will be measured computes what it should."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from engine.runner import BLOCK_SIZE, SequenceInput
from engine.torch_attention import PagedCaches, StepAttention, has_kernel
from engine.torch_replays import Replay, StepInputs, new_pool
from planner.bench.cuda.decoder import Decoder
from planner.bench.cuda.reference import AttentionCase, HeadShape, MakeAttention, Tensor
from planner.bench.cuda.shapes import ModelShape

# Of norms; fp32 products land far below, bf16 operands at some thousandths, and a row too many or too few far above.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
_BLOCKS = 80
_SMALL = ModelShape("check", 4, 256, 8, 2, 32, 512, 1000)
_CHAIN, _PAST = 8, 300


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: its error, by the norm of what is expected, and what it may be.

    `control` is true of attention that is wrong on purpose, whose error must be greater.
    """

    name: str
    error: float
    tolerance: float
    control: bool = False

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return self.error > self.tolerance if self.control else self.error <= self.tolerance


def checks(
    device: torch.device, dtype: torch.dtype, attention: MakeAttention | None = None
) -> Iterator[Check]:
    """All comparisons: attention with a reference in float64, and steps of a decoder with fp32 ones on the CPU.

    Args:
        device, dtype: of what is checked.
        attention: another than the runner's.
    """
    tolerance = TOLERANCES[dtype]

    def own(caches: PagedCaches, inputs: Mapping[str, Tensor], groups: int) -> StepAttention:
        return StepAttention(caches, inputs, groups, kernel=has_kernel(device))

    for name, batch in _steps().items():
        for shape in (HeadShape(8, 4, 64), HeadShape(4, 1, 128), HeadShape(2, 4, 32, window=40)):
            case = AttentionCase(batch, shape, _BLOCKS, device, dtype, seed=len(name))
            label = f"{name}, {shape.heads} x {shape.share} heads of {shape.width}"
            label += f", window {shape.window}" if shape.window else ""
            yield Check(label, case.error(attention or own), tolerance)
    tree = AttentionCase(_steps()["trees"], HeadShape(), _BLOCKS, device, dtype)
    yield Check("trees read as chains", tree.error(_as_chains(own)), tolerance, control=True)
    yield Check("decoder, chain in a replayed step", decoder_error(device, dtype), 4 * tolerance)


def decoder_error(device: torch.device, dtype: torch.dtype) -> float:
    """Logits of chains that are verified in one step, to those of token after token in fp32 on the CPU."""
    blocks = 2 * -(-(_PAST + _CHAIN) // BLOCK_SIZE)
    reference = Decoder(_SMALL, blocks, torch.device("cpu"), torch.float32)
    decoder = Decoder(_SMALL, blocks, device, dtype)
    for name, weights in decoder.weights.items():
        weights.copy_(reference.weights[name])
    decoder.caches.rows.copy_(reference.caches.rows)
    tokens = np.random.default_rng(0).integers(0, _SMALL.vocabulary, (2, _CHAIN)).tolist()
    of = [range(blocks // 2), range(blocks // 2, blocks)]
    expected = []
    for at in range(_CHAIN):
        step = reference.step(
            [
                SequenceInput(chain[at : at + 1], _PAST + at, each)
                for chain, each in zip(tokens, of, strict=True)
            ]
        )
        inputs = {name: torch.from_numpy(values) for name, values in step.inputs.items()}
        expected.append(reference.logits(inputs)[:2])
    step = decoder.step([SequenceInput(chain, _PAST, each) for chain, each in zip(tokens, of, strict=True)])
    replay = Replay(
        StepInputs(step, device, dtype),
        lambda inputs: {"logits": decoder.logits(inputs)},
        new_pool(device),
    )
    found = replay.run(step)["logits"][: step.wanted].float().cpu()
    wanted = torch.stack(expected, dim=1).flatten(0, 1)
    return float((found - wanted).norm() / wanted.norm())


def _steps() -> dict[str, list[SequenceInput]]:
    tree = [0, 0, 0, 1, 1, 2, 3, 3, 6]
    return {
        "single tokens": [SequenceInput([1], past, range(at, at + 12)) for at, past in ((0, 0), (12, 379))],
        "chains": [SequenceInput(range(8), 500, range(40)), SequenceInput(range(3), 31, [50, 45])],
        "trees": [
            SequenceInput(range(9), 90, [7, 3, 5, 9], parents=tree),
            SequenceInput(range(4), 200, range(20, 30), parents=[0, 0, 0, 0]),
        ],
        "beside a prompt": [
            SequenceInput(range(70), 64, range(10, 15), is_prompt=True),
            SequenceInput(range(4), 33, [1, 2]),
        ],
        "a window's blocks": [SequenceInput([5], 2 * BLOCK_SIZE + 9, [0, 60, 61], position=5000)],
    }


def _as_chains(attention: MakeAttention) -> MakeAttention:
    """Attention that is wrong: of a tree, every row sees those before it."""

    def wrong(caches: PagedCaches, inputs: Mapping[str, Tensor], groups: int) -> StepAttention:
        begins = inputs["0.begins"]
        chain = torch.arange(begins.shape[1], device=begins.device).expand_as(begins)
        ends = torch.full_like(begins, begins.shape[1])
        return attention(caches, {**inputs, "0.begins": chain.contiguous(), "0.ends": ends}, groups)

    return wrong
