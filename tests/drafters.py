"""Tiny drafters for the tiny targets: random ones, nearly always wrong, and planted ones, often right.

A planted drafter has random weights but for its last matrix, which is fitted to what the target emits by least
squares. Example::

    drafters = TinyDrafters(tiny_targets)
    speculators = drafters.speculators("medusa, tree", "int8", planted=True, slots=4)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.runners import openvino_runner
from tests.tiny import MAX_LENGTH, THREADS, TinyTargets

VARIANT = "llama of 8 layers"
WIDTH, VOCABULARY, LAYERS = 64, 265, 8
CAPTURED = (2, 4, 5)  # hidden states that EAGLE-3 reads by default
HEADS, STAGES = 4, 3
_PROMPT = 12  # tokens before what the planted drafters are fitted to

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


@dataclass(frozen=True)
class Trace:
    """One greedy output: all tokens, and the target's hidden states at each, [T, layers, H]."""

    tokens: list[int]
    hidden: NDArray[np.float32]


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
    return [tuple(random.integers(0, VOCABULARY, _PROMPT).tolist()) for _ in range(8)]


def _trace(runner: CompiledRunner, prompt: Sequence[int]) -> Trace:
    tokens, hidden = list(prompt), []
    batch = SequenceInput(prompt, 0, range(4), is_prompt=True, logits_from=len(prompt) - 1)
    for _ in range(60):
        logits = runner.forward([batch])
        hidden.append(runner.hidden()[: len(batch.tokens)])
        tokens.append(int(logits[-1].argmax()))
        batch = SequenceInput(tokens[-1:], len(tokens) - 1, range(4))
    return Trace(tokens, np.concatenate(hidden))


def fit(inputs: NDArray[Any], outputs: NDArray[Any]) -> torch.Tensor:
    """The matrix [out, in] that maps inputs [n, in] to outputs [n, out] best."""
    ridge = 1e-3 * np.eye(inputs.shape[1])
    return torch.from_numpy(
        np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ outputs).T.astype(np.float32)
    )


def _one_hot(tokens: Sequence[int]) -> NDArray[np.float64]:
    return 20 * np.eye(VOCABULARY)[list(tokens)]


def randomise(module: torch.nn.Module) -> None:
    """Weights under which every term matters."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = parameter.ndim == 1 and "bias" not in name
            parameter.normal_(0, 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
            if norm:
                parameter.add_(1)


def _write_mlp(drafters: TinyDrafters, path: Path, planted: str | None) -> None:
    config = MlpSpeculatorConfig(
        vocab_size=VOCABULARY, emb_dim=WIDTH, inner_dim=96, n_predict=STAGES, top_k_tokens_per_head=[4, 3, 2]
    )
    model = MlpModule(config)
    model.initialize()
    if planted:
        plant_mlp(model, drafters.traces(planted))
    mlp_checkpoint.save_checkpoint(model.to_checkpoint(), path)


def plant_mlp(model: MlpModule, traces: Sequence[Trace]) -> None:
    """Fit the heads to texts by teacher forcing."""
    inputs: list[list[NDArray[np.float64]]] = [[] for _ in range(STAGES)]
    wanted: list[list[int]] = [[] for _ in range(STAGES)]
    with torch.no_grad():
        for trace in traces:
            rows = range(_PROMPT - 1, len(trace.tokens) - STAGES - 1)
            state = model.first_state(torch.from_numpy(trace.hidden[rows, -1]))
            for stage in range(STAGES):
                before = torch.tensor([trace.tokens[row + stage + 1] for row in rows])
                state, _ = model.step(stage, state, before)
                inputs[stage].append(state.numpy().astype(np.float64))
                wanted[stage] += [trace.tokens[row + stage + 2] for row in rows]
        for stage in range(STAGES):
            head: Any = model.head[stage]
            head.weight.copy_(fit(np.concatenate(inputs[stage]), _one_hot(wanted[stage])))


def _write_medusa(drafters: TinyDrafters, path: Path, planted: str | None) -> None:
    model = MedusaHeads(MedusaConfig(medusa_num_heads=HEADS), WIDTH, VOCABULARY)
    randomise(model)
    if planted:
        plant_medusa(model, drafters.traces(planted))
    medusa_checkpoint.save_checkpoint(model.to_checkpoint(), path)


def plant_medusa(model: MedusaHeads, traces: Sequence[Trace]) -> None:
    """Fit the output matrices to texts."""
    with torch.no_grad():
        for head in range(HEADS):
            blocks: Any = list(model)[head]
            inputs, wanted = [], []
            for trace in traces:
                rows = range(_PROMPT - 1, len(trace.tokens) - head - 2)
                values = blocks[:-1](torch.from_numpy(trace.hidden[rows, -1]))
                inputs.append(values.numpy().astype(np.float64))
                wanted += [trace.tokens[row + head + 2] for row in rows]
            blocks[-1].weight.copy_(fit(np.concatenate(inputs), _one_hot(wanted)))


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
        plant_eagle(model, drafters, planted)
    eagle_checkpoint.save_checkpoint(model.to_checkpoint(), path)


def plant_eagle(model: EagleModule, drafters: TinyDrafters, planted: str) -> None:
    """Fit the last matrix so that the target's next hidden state comes out."""
    embedding = torch.from_numpy(drafters.targets.weights(VARIANT)["model.embed_tokens.weight"])
    mlp: Any = model.layers[0].mlp
    inputs, wanted = [], []
    seen: list[torch.Tensor] = []
    hook = mlp.down_proj.register_forward_pre_hook(lambda module, values: seen.append(values[0]))
    with torch.no_grad():
        mlp.down_proj.weight.zero_()
        for trace in drafters.traces(planted):
            before, after = torch.from_numpy(trace.hidden[:-1, -1]), trace.hidden[1:, -1]
            output, _ = model(before[None], embedding[trace.tokens[1:-1]][None], *_causal(len(before)))
            inputs.append(seen[-1][0].numpy().astype(np.float64))
            wanted.append(after - output[0].numpy())
        mlp.down_proj.weight.copy_(fit(np.concatenate(inputs), np.concatenate(wanted)))
    hook.remove()


def _write_eagle3(drafters: TinyDrafters, path: Path, planted: str | None) -> None:
    kept = np.arange(3, 243)  # a draft vocabulary whose ids are not the target's
    model = Eagle3Module(Eagle3Config.parse(_llama_keys(draft_vocab_size=len(kept)), "tiny"))
    randomise(model)
    maps = eagle3_checkpoint.vocabulary_maps(kept, VOCABULARY)
    model.d2t.copy_(torch.from_numpy(maps["d2t"]))
    model.t2d.copy_(torch.from_numpy(maps["t2d"]))
    if planted:
        plant_eagle3(model, drafters, planted, kept)
    eagle3_checkpoint.save_checkpoint(model.to_checkpoint(), path)


def plant_eagle3(model: Eagle3Module, drafters: TinyDrafters, planted: str, kept: NDArray[np.int64]) -> None:
    """Fit the output matrix to texts."""
    embedding = torch.from_numpy(drafters.targets.weights(VARIANT)["model.embed_tokens.weight"])
    inputs, wanted = [], []
    with torch.no_grad():
        for trace in drafters.traces(planted):
            features = torch.from_numpy(trace.hidden[:-1, :-1].reshape(len(trace.hidden) - 1, -1))
            rows = len(features)
            output, _ = model(model.fuse(features)[None], embedding[trace.tokens[1:-1]][None], *_causal(rows))
            inputs.append(model.norm(output)[0, _PROMPT:].numpy().astype(np.float64))
            wanted += trace.tokens[_PROMPT + 2 : rows + 2]
        model.lm_head.weight.copy_(fit(np.concatenate(inputs), _one_hot(wanted)[:, kept]))


def _causal(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [1, T] and who sees whom [1, T, T]."""
    return torch.arange(rows)[None], torch.ones(rows, rows, dtype=torch.bool).tril()[None]


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
    "draft_model": _write_draft,
}
