"""Which processes a deployment on TensorRT-LLM needs to be served: mode, ranks, and the models that every rank loads.

Example::

    topology = topology_of(resolve(spec))
    topology.mode, topology.ranks, topology.engines     # ("leader", 2, ("tensorrt_llm",))
"""

import os
from dataclasses import dataclass
from typing import Literal

from build.triton.tensors import DRAFT_MODEL
from build.trtllm.repository.engine_parameters import draft_ranks
from build.trtllm.resolved import Resolved


@dataclass(frozen=True)
class Topology:
    """How the server's processes are laid out.

    Attributes:
        mode: as in the spec, `engine.launch.mode`, with the default filled in.
        ranks: MPI processes in all.
        engines: models on the C++ backend, the target first; empty with the LLM API.
        hosts: one host a node, the leader first.
    """

    mode: Literal["single", "leader", "orchestrator", "multi_node"]
    ranks: int
    engines: tuple[str, ...]
    hosts: tuple[str, ...]


def python_path(resolved: Resolved, inherited: str) -> str:
    """PYTHONPATH for workers on other hosts: what the caller has, and behind it where the kit's drafter lies."""
    if resolved.support.drafting != "user_drafter":
        return inherited
    modules = (resolved.spec.serving.repository / "tensorrt_llm" / "1").absolute()
    return os.pathsep.join(filter(None, [inherited, str(modules)]))


def topology_of(resolved: Resolved) -> Topology:
    """The processes of a deployment. The LLM API starts the ranks of one node itself, so it has one there."""
    launch, engine = resolved.engine.launch, resolved.engine
    target = engine.tensor_parallel * engine.pipeline_parallel
    if resolved.runtime == "llm_api":
        if launch.mode == "multi_node":
            return Topology("multi_node", target, (), launch.hosts)
        return Topology("single", 1, (), ())
    engines = ("tensorrt_llm", *((DRAFT_MODEL,) if resolved.draft_engine else ()))
    ranks = target + draft_ranks(resolved) + 1 if launch.mode == "orchestrator" else target
    return Topology(launch.mode or ("single" if target == 1 else "leader"), ranks, engines, launch.hosts)
