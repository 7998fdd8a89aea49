"""vLLM beside our engine: with its own best ways of speculating, or both engines with the same chains.

Two implementations that draft with the same weights, after the same prompts, in chains of the same length and in the
same precision, accept alike. Where they do not, one of them is wrong.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.findings import UnsupportedDeployment
from deployments.speculation import (
    AnySpeculation,
    DraftModel,
    Eagle,
    Medusa,
    MlpSpeculator,
    NoSpeculation,
    PromptLookup,
    SuffixAutomaton,
)
from engine.manifest import EngineManifest
from engine.vllm.speculation import engine_settings
from planner.bench.peers.arms import Arm
from planner.bench.peers.beside import BASE
from speculators.draft_model.checkpoint import whole_model

VLLM = "vllm"
_MODULE = "planner.bench.peers.engines.vllm"
_LEAST_CACHE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class VllmModel:
    """What vLLM is given.

    Attributes:
        target: in Hugging Face layout.
        dtype: of weights and arithmetic.
        end_ids: tokens that end an answer.
        max_sequence_length: most tokens of a request.
        threads: of the engine.
        scratch: where a draft model that was kept without its embedding is completed.
        batch: requests at once.
        cache_bytes: of the KV cache, where a drafter has its own, too.
    """

    target: Path
    dtype: str
    end_ids: tuple[int, ...]
    max_sequence_length: int
    threads: int
    scratch: Path
    batch: int = 1
    cache_bytes: int = _LEAST_CACHE_BYTES

    def arm(self, name: str, speculation: AnySpeculation) -> Arm:
        """The arm of a way of speculating.

        Raises:
            UnsupportedDeployment: vLLM does not have it.
        """
        if isinstance(speculation, DraftModel):
            whole = whole_model(speculation.model, self.target, self.scratch / "draft_model")
            speculation = speculation.model_copy(update={"model": whole})
        arguments: dict[str, Any] = {
            "model": str(self.target),
            "dtype": self.dtype,
            "max_model_len": self.max_sequence_length,
            "max_num_seqs": self.batch,
            "kv_cache_memory_bytes": self.cache_bytes,
            **engine_settings(speculation, max_batch_size=self.batch),
        }
        settings = {
            "arguments": arguments,
            "end_ids": list(self.end_ids),
            "threads": self.threads,
        }
        return Arm(VLLM, name, _MODULE, settings)


def cache_bytes(manifest: EngineManifest, requests: int, length: int) -> int:
    """Enough for requests of a length, in float32 and with a drafter that has as much again."""
    row = 2 * manifest.num_layers * manifest.num_kv_heads * manifest.head_dim * 4
    return max(_LEAST_CACHE_BYTES, 2 * row * requests * length)


def vllm_arms(model: VllmModel, own: AnySpeculation) -> Iterator[Arm]:
    """Plain, with n-grams, with suffixes, and with the deployment's `own` speculation where vLLM has it."""
    ways: Mapping[str, AnySpeculation] = {
        BASE: NoSpeculation(),
        "ngram 5": PromptLookup(method="prompt_lookup", ngram=3, draft_length=5),
        "suffix 8": SuffixAutomaton(method="suffix_automaton", draft_length=8),
    }
    for name, speculation in ways.items():
        yield model.arm(name, speculation)
    if own.method not in (BASE, "prompt_lookup", "suffix_automaton"):
        try:
            yield model.arm(own.method, own)
        except UnsupportedDeployment:
            return


def as_chain(speculation: AnySpeculation, length: int) -> AnySpeculation:
    """The section, drafting a chain of `length` tokens whenever it drafts."""
    only = tuple((0,) * depth for depth in range(1, length + 1))
    settings: dict[str, Any] = {
        "adaptive": False,
        "max_concurrency": None,
        "draft_length_schedule": None,
        "draft_policy": "scheduled",
        "acceptance_gate": None,
        "draft_length": length,
        "dynamic_tree": None,
        "suffix_automaton": None,
        "drafted_by": "engine",
    }
    if isinstance(speculation, Medusa):
        settings |= {"num_heads": length, "choices": only}
    elif isinstance(speculation, Eagle):
        settings |= {"depth": length, "max_draft_tokens": length, "choices": only}
    elif isinstance(speculation, MlpSpeculator):
        settings |= {"candidates": 1}
    known = {key: value for key, value in settings.items() if key in type(speculation).model_fields}
    return speculation.model_copy(update=known)
