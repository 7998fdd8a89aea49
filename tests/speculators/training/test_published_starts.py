"""Checkpoints of other trainers are trained further as what they are: switches, widths, vocabularies, own matrices."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

import numpy as np  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from deployments.training import TrainingSpec  # noqa: E402
from speculators.data.samples import Sample  # noqa: E402
from speculators.eagle.checkpoint import EMBEDDING  # noqa: E402
from speculators.eagle3 import checkpoint as eagle3  # noqa: E402
from speculators.eagle3.config import Eagle3Config  # noqa: E402
from speculators.eagle3.model import Eagle3  # noqa: E402
from speculators.formats.checkpoint import Checkpoint, Shapes  # noqa: E402
from speculators.formats.tensors import Tensors, as_dtype  # noqa: E402
from speculators.medusa import checkpoint as medusa  # noqa: E402
from speculators.medusa.config import MedusaConfig  # noqa: E402
from speculators.medusa.model import MedusaHeads  # noqa: E402
from speculators.mlp_speculator import checkpoint as mlp_speculator  # noqa: E402
from speculators.mlp_speculator.config import MlpSpeculatorConfig  # noqa: E402
from speculators.peagle import checkpoint as peagle  # noqa: E402
from speculators.peagle.config import PEagleConfig  # noqa: E402
from speculators.training.errors import TrainingError  # noqa: E402
from speculators.training.features import Batch, collate  # noqa: E402
from speculators.training.target import FrozenTarget  # noqa: E402
from speculators.training.trainee import Trainee  # noqa: E402
from tests.speculators.training.samples import begun_from  # noqa: E402

pytestmark = pytest.mark.torch

WIDTH, VOCABULARY, DEPTH, DECAY = 64, 265, 2, 0.8
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def random_tensors(shapes: Shapes) -> Tensors:
    """In bfloat16, and large enough for every one of them to matter."""
    dice = np.random.default_rng(5)
    drawn = {name: dice.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    return as_dtype(drawn, "bfloat16")


def begun(
    method: str, directory: Path, target: FrozenTarget, samples: list[Sample], **settings: Any
) -> tuple[Trainee, Batch]:
    """The trainee that begins from a checkpoint, and a batch."""
    given = {"depth": DEPTH, "labels": "hard", "from_pretrained": directory, **settings}
    trainee, source = begun_from(method, TrainingSpec.model_validate(given), target, samples)
    return trainee.eval(), collate(samples[:2], source, everything=True)


def same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) for name in expected
    )


SWITCHES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "plain": ({}, {eagle3.OUTPUT}),
    "norm_before_residual": ({"norm_before_residual": True}, {eagle3.OUTPUT}),
    "norm_output": ({"norm_output": True}, {eagle3.OUTPUT}),
    "norm_before_fc": ({"norm_before_fc": True}, {eagle3.OUTPUT}),
    "fc_norm": ({"fc_norm": True}, {eagle3.OUTPUT}),
    "bias": ({"bias": True}, {eagle3.OUTPUT}),
    "qwen3": ({"model_type": "qwen3"}, {eagle3.OUTPUT}),
    "own embedding": ({"embed_requires_grad": True}, {eagle3.OUTPUT, EMBEDDING}),
    "narrower": ({"hidden_size": 48, "target_hidden_size": WIDTH}, {eagle3.OUTPUT, EMBEDDING}),
    "the target's output": ({"draft_vocab_size": VOCABULARY}, set()),
}


def eagle3_start(switches: Mapping[str, Any], optional: set[str], directory: Path) -> Eagle3Config:
    """A drafter whose draft vocabulary is in no order."""
    config = Eagle3Config.parse({**LLAMA, "draft_vocab_size": 150, **switches}, "test").reading([0, -1, 0])
    shapes = eagle3.tensor_shapes(config, optional)
    maps = {name for name in (eagle3.DRAFT_TO_TARGET, eagle3.TARGET_TO_DRAFT) if name in shapes}
    tensors = random_tensors({name: shape for name, shape in shapes.items() if name not in maps})
    if maps:
        ids = np.random.default_rng(2).permutation(VOCABULARY)[:150].astype(np.int64)
        tensors[eagle3.DRAFT_TO_TARGET] = ids - np.arange(150)
        tensors[eagle3.TARGET_TO_DRAFT] = np.isin(np.arange(VOCABULARY), ids)
    directory.mkdir()
    eagle3.save_checkpoint(Checkpoint(config, tensors), directory)
    return config


@torch.no_grad()  # type: ignore[untyped-decorator]
def eagle3_loss(checkpoint: eagle3.Eagle3Checkpoint, target: FrozenTarget, batch: Batch) -> float:
    """Of chains that the published module drafts from every position, the true tokens after it."""
    stored = checkpoint.tensors.get(EMBEDDING)
    embedding = target.embedding if stored is None else torch.tensor(stored.astype(np.float32))
    tensors = {eagle3.OUTPUT: target.lm_head.numpy(), **checkpoint.tensors}
    drafter = Eagle3.from_checkpoint(Checkpoint(checkpoint.config, tensors))
    ids = {int(token): row for row, token in enumerate(eagle3.target_ids(checkpoint))}
    losses: list[list[Any]] = [[] for _ in range(DEPTH)]
    for tokens, fused in zip(batch.tokens, batch.fused.flatten(2).float(), strict=True):
        for root in range(len(tokens) - 2):
            hidden, past = drafter.fuse(fused[None, : root + 1]), None
            ahead, positions = tokens[None, 1 : root + 2], torch.arange(root + 1)[None]
            for depth in range(min(DEPTH, len(tokens) - root - 2)):
                rows, seen = hidden.shape[1], 0 if past is None else past[0].shape[2]
                visible = torch.ones(1, rows, seen + rows, dtype=torch.bool).tril(seen)
                hidden, past = drafter(hidden, embedding[ahead], positions, visible, past)
                hidden, positions = hidden[:, -1:], positions[:, -1:] + 1
                following = int(tokens[root + depth + 2])
                ahead = torch.tensor([[following]])
                if following in ids:
                    label = torch.tensor([ids[following]])
                    losses[depth].append(cross_entropy(drafter.logits(hidden)[:, 0], label))
    return sum(DECAY**depth * float(torch.stack(found).mean()) for depth, found in enumerate(losses))


@pytest.mark.parametrize("kind", SWITCHES)
def test_an_eagle3_drafter_is_what_its_config_says(
    kind: str, tmp_path: Path, tiny_target: FrozenTarget, tiny_samples: list[Sample]
) -> None:
    """Loss and weights before the first step are the published module's; read without its switch they are others."""
    switches, optional = SWITCHES[kind]
    eagle3_start(switches, optional, tmp_path / "start")
    trainee, batch = begun("eagle3", tmp_path / "start", tiny_target, tiny_samples)
    checkpoint = eagle3.load_checkpoint(tmp_path / "start")
    with torch.no_grad():
        found = float(trainee(batch)[0])
    assert found == pytest.approx(eagle3_loss(checkpoint, tiny_target, batch), rel=2e-3)
    for switch in {"norm_before_residual", "norm_output"} & switches.keys():
        without = Checkpoint(checkpoint.config.changed(**{switch: False}), checkpoint.tensors)
        assert found != pytest.approx(eagle3_loss(without, tiny_target, batch), rel=2e-3)
    (tmp_path / "saved").mkdir()
    trainee.save(tmp_path / "saved")
    saved = eagle3.load_checkpoint(tmp_path / "saved")
    assert saved.config == checkpoint.config
    if eagle3.OUTPUT not in optional:
        assert saved.tensors.pop(eagle3.OUTPUT).shape == (VOCABULARY, WIDTH)
    assert same(saved.tensors, checkpoint.tensors)


def test_peagle_keeps_its_mask_its_biases_and_its_embedding(
    tmp_path: Path, tiny_target: FrozenTarget, tiny_samples: list[Sample]
) -> None:
    config = PEagleConfig.parse(
        {**LLAMA, "num_hidden_layers": 3, "mask_token_id": 7, "attention_bias": True}, "test"
    ).reading([0, -1, 0])
    tensors = random_tensors(peagle.tensor_shapes(config, {eagle3.OUTPUT, EMBEDDING}))
    for name in ("start", "saved"):
        (tmp_path / name).mkdir()
    peagle.save_checkpoint(Checkpoint(config, tensors), tmp_path / "start")
    trainee, batch = begun("peagle", tmp_path / "start", tiny_target, tiny_samples)
    assert torch.isfinite(trainee(batch)[0])
    trainee.save(tmp_path / "saved")
    saved = peagle.load_checkpoint(tmp_path / "saved")
    assert (saved.config.mask_token_id, saved.config.num_hidden_layers) == (7, 3)
    assert same(saved.tensors, tensors)


def test_heads_with_output_matrices_learn_those(
    tmp_path: Path, tiny_target: FrozenTarget, tiny_samples: list[Sample]
) -> None:
    config = MedusaConfig(medusa_num_heads=DEPTH, medusa_num_layers=1)
    tensors = random_tensors(medusa.tensor_shapes(config, WIDTH, VOCABULARY))
    for name in ("start", "saved"):
        (tmp_path / name).mkdir()
    medusa.save_checkpoint(Checkpoint(config, tensors), tmp_path / "start")
    trainee, batch = begun("medusa", tmp_path / "start", tiny_target, tiny_samples)
    loss = trainee(batch)[0]
    with torch.no_grad():
        logits = MedusaHeads.from_checkpoint(Checkpoint(config, tensors))(batch.final.float())
        expected = sum(
            DECAY**head
            * cross_entropy(logits[head, :, : -2 - head].flatten(0, 1), batch.tokens[:, 2 + head :].flatten())
            for head in range(DEPTH)
        )
    assert loss.item() == pytest.approx(float(expected), rel=2e-3)
    loss.backward()
    assert all(parameter.grad is not None for parameter in trainee.parameters())
    trainee.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "draft_vocabulary.safetensors").exists()
    assert same(medusa.load_checkpoint(tmp_path / "saved").tensors, tensors)


def test_a_whole_vocabulary_stays_whole(
    tmp_path: Path, tiny_target: FrozenTarget, tiny_samples: list[Sample]
) -> None:
    """An MLP speculator as IBM released them: stages of their own, and another width."""
    config = MlpSpeculatorConfig(
        vocab_size=VOCABULARY, emb_dim=WIDTH, inner_dim=40, n_predict=DEPTH, top_k_tokens_per_head=[3, 2]
    )
    tensors = random_tensors(mlp_speculator.tensor_shapes(config))
    for name in ("start", "saved"):
        (tmp_path / name).mkdir()
    mlp_speculator.save_checkpoint(Checkpoint(config, tensors), tmp_path / "start")
    trainee, batch = begun("mlp_speculator", tmp_path / "start", tiny_target, tiny_samples)
    assert torch.isfinite(trainee(batch)[0])
    trainee.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "draft_vocabulary.safetensors").exists()
    saved = mlp_speculator.load_checkpoint(tmp_path / "saved")
    assert saved.config.stored_as("bfloat16") == config.stored_as("bfloat16")
    assert same(saved.tensors, tensors)


def test_a_draft_of_another_width_keeps_its_own_matrices(
    tmp_path: Path, tiny_target: FrozenTarget, tiny_samples: list[Sample]
) -> None:
    import transformers

    torch.manual_seed(3)
    sizes = {**LLAMA, "hidden_size": 32, "num_hidden_layers": 1, "tie_word_embeddings": False}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "start")
    (tmp_path / "saved").mkdir()
    trainee, batch = begun("draft_model", tmp_path / "start", tiny_target, tiny_samples)
    with torch.no_grad():
        logits = model.float()(input_ids=batch.tokens).logits[:, :-1].flatten(0, 1)
        expected = cross_entropy(logits, batch.tokens[:, 1:].flatten())
        assert float(trainee(batch)[0]) == pytest.approx(float(expected), rel=2e-3)
    trainee.save(tmp_path / "saved")
    found, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "start"))
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[name], theirs[name]) for name in theirs)
    assert FrozenTarget(tmp_path / "saved", torch.device("cpu")).hidden_size == 32
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    with pytest.raises(
        TrainingError, match=r"save_embedding is false, but the embedding of \S+ is not the target's"
    ):
        begun("draft_model", tmp_path / "start", tiny_target, tiny_samples, save_embedding=False)
