"""Steps of one shape, as CUDA graphs where there is a CUDA device.

A step of a small model is hundreds of kernels of a few microseconds, so launching them one by one takes longer than
running them. Shapes are padded to powers of two, and one graph is captured for each shape that
occurs. On a CPU the same padded step is simply run.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from engine.torch_steps import Step

Tensor = torch.Tensor


class StepInputs:
    """Inputs of steps of one shape at fixed places on the device. Integers lie in one buffer: a step is one copy.

    Args:
        step: the first of that shape, whose values they have.
        device: where the step runs.
        dtype: of hidden states.
    """

    def __init__(self, step: Step, device: torch.device, dtype: torch.dtype) -> None:
        sizes = [values.size for values in step.inputs.values()]
        self._host = torch.zeros(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = torch.zeros_like(self._host, device=device)
        self._values = dict(zip(step.inputs, torch.split(self._host, sizes), strict=True))
        parts = zip(step.inputs.items(), torch.split(self._device, sizes), strict=True)
        self.tensors = {name: part.view(values.shape) for (name, values), part in parts}
        if step.hidden is not None:
            self.tensors["hidden"] = torch.zeros(step.hidden.shape, dtype=dtype, device=device)
        self.fill(step)

    def fill(self, step: Step) -> None:
        """Take over the values of a step; the host waits until they are there, so the buffer may be filled again."""
        for name, values in step.inputs.items():
            self._values[name].copy_(torch.from_numpy(values).flatten())
        self._device.copy_(self._host)
        if step.hidden is not None:
            self.tensors["hidden"].copy_(torch.from_numpy(step.hidden))


def new_pool(device: torch.device) -> Any:
    """Memory that CUDA graphs share; None where there are none."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


class Replay:
    """A step of one shape: captured on the first run, replayed with other inputs afterwards.

    Args:
        inputs: of the first step.
        compute: outputs of inputs.
        pool: from `new_pool`; what graphs of one pool put out is valid until the next of them runs, whichever it is.
    """

    def __init__(
        self,
        inputs: StepInputs,
        compute: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
        pool: Any,
    ) -> None:
        self._inputs, self._compute = inputs, compute
        self._graph: Any = None
        if pool is not None:
            self._capture(pool)

    def run(self, step: Step) -> dict[str, Tensor]:
        """Outputs for another step of the same shape."""
        self._inputs.fill(step)
        return self.repeat()

    def repeat(self) -> dict[str, Tensor]:
        """Outputs for the inputs as they are."""
        if self._graph is None:
            return self._compute(self._inputs.tensors)
        self._graph.replay()
        return self._found

    def _capture(self, pool: Any) -> None:
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # a warm-up on another stream, as capturing demands
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._compute(self._inputs.tensors)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._found = self._compute(self._inputs.tensors)
