"""What is compared: engines, and for each the ways of speculating that it has for a model.

Every engine has the arm `none`, its own base. Settings of the others' n-gram drafters are fitted to a small model, as a
user who wants the best of them would: their defaults of 12 matching tokens and 48 drafted ones hardly ever draft.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.spec import DeploymentSpec
from planner.bench.peers.beside import BASE, named_deployments

OURS = "drafthouse"
_ENGINES = "planner.bench.peers.engines"
_LOOKUPS = ((3, 5), (3, 10))  # longest n-gram, draft length
_NGRAM_DRAFTERS = ("ngram_simple", "ngram_map_k", "ngram_mod", "ngram_cache")
_DRAFT_LENGTHS = (3, 5)


@dataclass(frozen=True, slots=True)
class Arm:
    """One engine with one way of speculating.

    Attributes:
        engine: whose arm it is; arms of an engine are compared with its arm `none`.
        method: how it speculates, with its settings, as shown in the table.
        module: the program to start.
        settings: what the program is told.
    """

    engine: str
    method: str
    module: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the arm in records and tables."""
        return f"{self.engine} {self.method}"


@dataclass(frozen=True, slots=True)
class PeerModel:
    """What other engines are given.

    Attributes:
        gguf: the target.
        draft: a draft model as GGUF file, for llama.cpp; None: no arm with a draft model.
        end_ids: tokens that end an answer.
        max_sequence_length: most tokens of a request.
        threads: of every engine.
        batch: requests at once.
    """

    gguf: Path
    draft: Path | None
    end_ids: Sequence[int]
    max_sequence_length: int
    threads: int
    batch: int = 1

    def settings(self, method: str, **more: Any) -> dict[str, Any]:
        """Settings of an arm's program."""
        return {
            "model": str(self.gguf.resolve()),
            "draft": str(self.draft.resolve()) if self.draft else None,
            "end_ids": list(self.end_ids),
            "max_sequence_length": self.max_sequence_length,
            "threads": self.threads,
            "batch": self.batch,
            "method": method,
            **{"ngram": 3, "draft_length": 5, **more},
        }


def embedded_arms(
    spec: DeploymentSpec,
    threads: int,
    beside: Sequence[DeploymentSpec] = (),
    batch: int = 1,
    temperature: float = 0.0,
) -> list[Arm]:
    """The kit's own engine: no speculation, and what the deployments speculate with; ANPD beside a single one.

    Prompts are read anew in every round, so a prefix cache would only favour later rounds.

    Args:
        spec: the deployment, whose engine all arms have.
        threads: of the engine.
        beside: others of the same target and engine (`planner.bench.peers.beside`).
        batch: requests at once.
        temperature: of the answers; 0 is greedy.
    """
    own = spec.embedded
    engine = own.model_copy(
        update={
            "max_batch_size": batch,
            "max_queue_size": max(batch, own.max_queue_size),
            "kv_cache_reuse": False,
            "threads": threads,
        }
    )
    arms = []
    for name, each in named_deployments(spec, beside).items():
        changed = each.model_copy(update={"engine": engine})
        dumped = changed.model_dump(mode="json", exclude_defaults=True)
        settings = {"spec": dumped, "temperature": temperature}
        arms.append(Arm(OURS, name, f"{_ENGINES}.embedded", settings))
    return arms


def openvino_genai_arms(model: PeerModel) -> Iterator[Arm]:
    """openvino-genai: prompt lookup. Of a draft model it wants an OpenVINO directory, which a GGUF file is not."""
    engine, module = "openvino-genai", f"{_ENGINES}.openvino_genai"
    yield Arm(engine, BASE, module, model.settings(BASE))
    for ngram, length in _LOOKUPS:
        settings = model.settings("prompt_lookup", ngram=ngram, draft_length=length)
        yield Arm(engine, f"prompt lookup {length}", module, settings)


def llama_cpp_arms(model: PeerModel) -> Iterator[Arm]:
    """llama.cpp: its n-gram drafters; with a draft model if there is one."""
    engine, module = "llama.cpp", f"{_ENGINES}.llama_cpp"
    yield Arm(engine, BASE, module, model.settings(BASE))
    for method in _NGRAM_DRAFTERS:
        yield Arm(engine, method.replace("_", "-"), module, model.settings(method, draft_length=8))
    for length in _DRAFT_LENGTHS if model.draft else ():
        settings = model.settings("draft_simple", draft_length=length)
        yield Arm(engine, f"draft model {length}", module, settings)
