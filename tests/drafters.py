"""Tiny drafters for the tiny targets: random ones, nearly always wrong, and planted ones, often right.

A planted drafter has random weights but for its last matrix, which is fitted to what the target emits by least
squares. Example::

    drafters = TinyDrafters(tiny_targets)
    speculators = drafters.speculators("medusa, tree", "int8", planted=True, slots=4)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from build.drafters import compile_speculator
from build.targets.architecture import Architecture
from deployments.enhancer import SelfLookupEnhancer
from deployments.speculation import (
    AnySpeculation,
    DraftModel,
    DynamicTree,
    Eagle,
    Eagle3,
    Lookahead,
    LowBit,
    Medusa,
    MlpSpeculator,
    PEagle,
    WindowedSelfDrafting,
)
from engine.backend import Backend
from engine.compiled_runner import CompiledRunner
from engine.drafters import Prepared, prepare
from engine.openvino_graphs import OpenVinoBackend
from engine.runner import SequenceInput
from speculators.base import Speculator
from speculators.eagle import checkpoint as eagle_checkpoint
from speculators.eagle.config import EagleConfig
from speculators.eagle.model import Eagle as EagleModule
from speculators.eagle3 import checkpoint as eagle3_checkpoint
from speculators.eagle3.config import Eagle3Config
from speculators.eagle3.model import Eagle3 as Eagle3Module
from speculators.medusa import checkpoint as medusa_checkpoint
from speculators.medusa.config import MedusaConfig
from speculators.medusa.model import MedusaHeads
from speculators.mlp_speculator import checkpoint as mlp_checkpoint
from speculators.mlp_speculator.config import MlpSpeculatorConfig
from speculators.mlp_speculator.model import MlpSpeculator as MlpModule
from speculators.peagle import checkpoint as peagle_checkpoint
from speculators.peagle.config import PEagleConfig
from speculators.peagle.model import PEagle as PEagleModule
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.planted import (
    HEADS,
    PROMPT,
    STAGES,
    VOCABULARY,
    WIDTH,
    Trace,
    plant_eagle,
    plant_eagle3,
    plant_medusa,
    plant_mlp,
    plant_peagle,
    randomise,
)
from tests.runners import openvino_runner
from tests.tiny import MAX_LENGTH, THREADS, TinyTargets

VARIANT = "llama of 8 layers"
LAYERS = 8
CAPTURED = (2, 4, 5)  # hidden states that EAGLE-3 reads by default

SPECULATIONS: dict[str, Callable[[Path], AnySpeculation]] = {
    "mlp_speculator, chain": lambda path: MlpSpeculator(
        method="mlp_speculator", checkpoint=path, draft_length=3, adaptive=False
    ),
    "mlp_speculator, tree": lambda path: MlpSpeculator(
        method="mlp_speculator", checkpoint=path, draft_length=3, candidates=4
    ),
    "medusa, chain": lambda path: Medusa(method="medusa", checkpoint=path, choices=((0,), (0, 0), (0, 0, 0))),
    "medusa, tree": lambda path: Medusa(method="medusa", checkpoint=path),
    "medusa, in turns": lambda path: Medusa(
        method="medusa",
        checkpoint=path,
        suffix_automaton=SelfLookupEnhancer(threshold=1, chain_length=6),
    ),
    "eagle, tree": lambda path: Eagle(
        method="eagle", checkpoint=path, depth=3, max_draft_tokens=9, max_non_leaves=3
    ),
    "eagle3, chain": lambda path: Eagle3(method="eagle3", checkpoint=path, draft_length=4, adaptive=False),
    "eagle3, tree": lambda path: Eagle3(
        method="eagle3", checkpoint=path, draft_length=3, dynamic_tree=DynamicTree(top_k=3, total=9)
    ),
    "eagle3, tree, enhanced": lambda path: Eagle3(
        method="eagle3",
        checkpoint=path,
        draft_length=3,
        dynamic_tree=DynamicTree(top_k=3, total=9),
        suffix_automaton=SelfLookupEnhancer(threshold=1),
    ),
    "eagle3, in turns": lambda path: Eagle3(
        method="eagle3",
        checkpoint=path,
        draft_length=3,
        suffix_automaton=SelfLookupEnhancer(threshold=1, chain_length=7),
    ),
    "peagle, chain": lambda path: PEagle(method="peagle", checkpoint=path, draft_length=4, adaptive=False),
    "peagle, in turns": lambda path: PEagle(
        method="peagle",
        checkpoint=path,
        draft_length=3,
        suffix_automaton=SelfLookupEnhancer(threshold=1, chain_length=7),
    ),
    "draft_model, chain": lambda path: DraftModel(
        method="draft_model", model=path, draft_length=4, adaptive=False
    ),
    "draft_model, in turns": lambda path: DraftModel(
        method="draft_model",
        model=path,
        draft_length=3,
        adaptive=False,
        suffix_automaton=SelfLookupEnhancer(threshold=1, chain_length=7),
    ),
}
UNTRAINED: dict[str, AnySpeculation] = {
    "lookahead, tree": Lookahead(method="lookahead", window=5, ngram=4, verification_set=5),
    "windowed, chain": WindowedSelfDrafting(
        method="windowed", draft_length=5, window=64, min_context=1, adaptive=False
    ),
    "windowed, guesses": WindowedSelfDrafting(
        method="windowed", draft_length=6, window=32, min_context=1, lookup=3
    ),
    "low_bit, chain": LowBit(method="low_bit", draft_length=5, rank=8, adaptive=False),
}
"""Methods without a checkpoint that need the engine."""
EVERY = (*SPECULATIONS, *UNTRAINED)


class TinyDrafters:
    """Checkpoints, compiled graphs and speculators by name, graphs compiled once."""

    def __init__(self, targets: TinyTargets, root: Path) -> None:
        self.targets, self._root = targets, root
        self._traces: dict[str, list[Trace]] = {}

    def speculation(self, name: str, precision: str, *, planted: bool) -> AnySpeculation:
        """The spec's section, with a checkpoint that is there; planted ones are fitted to the precision's output."""
        if name in UNTRAINED:
            return UNTRAINED[name]
        method = name.partition(",")[0]
        path = self._root / f"{method}-{f'planted-{precision}' if planted else 'random'}"
        if not path.exists():
            path.mkdir(parents=True)
            torch.manual_seed(5)
            _WRITERS[method](self, path, precision if planted else None)
        return SPECULATIONS[name](path)

    def directory(self, name: str, precision: str, *, planted: bool) -> Path:
        """The compiled speculator; not there where there is nothing to compile."""
        speculation = self.speculation(name, precision, planted=planted)
        directory = self._root / f"compiled-{name.replace(', ', '-')}-{precision}-{planted}"
        if not directory.exists():
            compile_speculator(
                speculation,
                directory,
                target=self.targets.source(VARIANT),
                precision="int4" if isinstance(speculation, LowBit) else precision,
                max_sequence_length=MAX_LENGTH,
            )
        return directory

    def speculators(
        self, name: str, precision: str, *, planted: bool, slots: int, backend: Backend | None = None
    ) -> list[Speculator]:
        """New speculators, on OpenVINO by default, beside the target's shared runner; of most methods one."""
        return opened(
            self.speculation(name, precision, planted=planted),
            self.directory(name, precision, planted=planted),
            self.targets.runner(VARIANT, precision),
            slots=slots,
            backend=backend,
        )

    @property
    def embedding(self) -> torch.Tensor:
        """The target's, [V, H]."""
        return torch.from_numpy(self.targets.weights(VARIANT)["model.embed_tokens.weight"])

    def traces(self, precision: str) -> list[Trace]:
        """What the target emits after a few prompts."""
        if precision not in self._traces:
            runner = openvino_runner(
                self.targets.engine(VARIANT, precision),
                num_blocks=8,
                threads=THREADS,
                hidden_layers=(*CAPTURED, -1),
            )
            self._traces[precision] = [_trace(runner, prompt) for prompt in planted_prompts()]
        return self._traces[precision]


def opened(
    speculation: AnySpeculation,
    directory: Path,
    runner: CompiledRunner,
    *,
    slots: int,
    backend: Backend | None = None,
) -> list[Speculator]:
    """The speculators of a section, loaded beside a runner of their target."""
    prepared = prepare(
        speculation, directory, target=runner.manifest, slots=slots, max_sequence_length=MAX_LENGTH
    )
    return [each.open(backend or OpenVinoBackend(THREADS), runner) for each in prepared]


def layers_of(speculators: Sequence[Speculator] | Sequence[Prepared]) -> tuple[int, ...]:
    """Hidden states that they need."""
    return tuple(layer for each in speculators for layer in each.requirements.hidden_layers)


def planted_prompts() -> list[tuple[int, ...]]:
    """The prompts after which planted drafters are often right."""
    random = np.random.default_rng(8)
    return [tuple(random.integers(0, VOCABULARY, PROMPT).tolist()) for _ in range(8)]


def _trace(runner: CompiledRunner, prompt: Sequence[int]) -> Trace:
    tokens, hidden = list(prompt), []
    batch = SequenceInput(prompt, 0, range(4), is_prompt=True, logits_from=len(prompt) - 1)
    for _ in range(60):
        logits = runner.forward([batch])
        hidden.append(runner.hidden()[: len(batch.tokens)])
        tokens.append(int(logits[-1].argmax()))
        batch = SequenceInput(tokens[-1:], len(tokens) - 1, range(4))
    return Trace(tokens, np.concatenate(hidden))


def _write_mlp(drafters: TinyDrafters, path: Path, planted: str | None) -> None:
    config = MlpSpeculatorConfig(
        vocab_size=VOCABULARY, emb_dim=WIDTH, inner_dim=96, n_predict=STAGES, top_k_tokens_per_head=[4, 3, 2]
    )
    model = MlpModule(config)
    model.initialize()
    if planted:
        plant_mlp(model, drafters.traces(planted))
    mlp_checkpoint.save_checkpoint(model.to_checkpoint(), path)


def _write_medusa(drafters: TinyDrafters, path: Path, planted: str | None) -> None:
    model = MedusaHeads(MedusaConfig(medusa_num_heads=HEADS), WIDTH, VOCABULARY)
    randomise(model)
    if planted:
        plant_medusa(model, drafters.traces(planted))
    medusa_checkpoint.save_checkpoint(model.to_checkpoint(), path)


def _llama_keys(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": MAX_LENGTH,
        **changes,
    }


def _write_eagle(drafters: TinyDrafters, path: Path, planted: str | None) -> None:
    model = EagleModule(EagleConfig.parse(_llama_keys(bias=True), "tiny"))
    randomise(model)
    if planted:
        plant_eagle(model, drafters.traces(planted), drafters.embedding)
    eagle_checkpoint.save_checkpoint(model.to_checkpoint(), path)


def _write_eagle3(drafters: TinyDrafters, path: Path, planted: str | None) -> None:
    kept = np.arange(3, 243)  # a draft vocabulary whose ids are not the target's
    model = Eagle3Module(Eagle3Config.parse(_llama_keys(draft_vocab_size=len(kept)), "tiny"))
    randomise(model)
    maps = eagle3_checkpoint.vocabulary_maps(kept, VOCABULARY)
    model.d2t.copy_(torch.from_numpy(maps["d2t"]))
    model.t2d.copy_(torch.from_numpy(maps["t2d"]))
    if planted:
        plant_eagle3(model, drafters.traces(planted), drafters.embedding, kept)
    eagle3_checkpoint.save_checkpoint(model.to_checkpoint(), path)


def _write_peagle(drafters: TinyDrafters, path: Path, planted: str | None) -> None:
    kept = np.arange(3, 243)
    keys = _llama_keys(draft_vocab_size=len(kept), num_hidden_layers=2, mask_token_id=250)
    model = PEagleModule(PEagleConfig.parse(keys, "tiny"))
    randomise(model)
    maps = eagle3_checkpoint.vocabulary_maps(kept, VOCABULARY)
    model.d2t.copy_(torch.from_numpy(maps["d2t"]))
    model.t2d.copy_(torch.from_numpy(maps["t2d"]))
    if planted:
        plant_peagle(model, drafters.traces(planted), drafters.embedding, kept, size=4)
    peagle_checkpoint.save_checkpoint(model.to_checkpoint(), path)


def _write_draft(drafters: TinyDrafters, path: Path, planted: str | None) -> None:
    """The target itself without its last layer, or another random model."""
    layers = LAYERS - 1 if planted else 1
    config = tiny_config("llama", head_dim=32, num_hidden_layers=layers)
    if planted:
        weights: Mapping[str, NDArray[Any]] = drafters.targets.weights(VARIANT)
        names = [name for name in weights if not name.startswith(f"model.layers.{LAYERS - 1}.")]
        weights = {name: weights[name] for name in names}
    else:
        weights = random_weights(Architecture.from_config(config), seed=77)
    write_huggingface(path, config, weights)


_WRITERS: dict[str, Callable[[TinyDrafters, Path, str | None], None]] = {
    "mlp_speculator": _write_mlp,
    "medusa": _write_medusa,
    "eagle": _write_eagle,
    "eagle3": _write_eagle3,
    "peagle": _write_peagle,
    "draft_model": _write_draft,
}
