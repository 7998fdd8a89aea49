"""Output matrices that are computed by a tree: what comes out is the float64 reference's, and of no other rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from build.graph.heads import build_mlp_stage  # noqa: E402
from deployments.spec import DeploymentSpec, SpecError  # noqa: E402
from deployments.training import TrainingSpec  # noqa: E402
from engine.linear_layers import LinearLayers  # noqa: E402
from engine.native.library import instructions  # noqa: E402
from engine.openvino_graphs import PlainGraph, settings  # noqa: E402
from speculators.formats.checkpoint import Checkpoint  # noqa: E402
from speculators.mlp_speculator.checkpoint import MlpSpeculatorCheckpoint  # noqa: E402
from speculators.mlp_speculator.config import MlpSpeculatorConfig  # noqa: E402
from speculators.mlp_speculator.model import MlpSpeculator  # noqa: E402
from speculators.training.distillation import Teacher  # noqa: E402
from speculators.training.loop import TrainingRun  # noqa: E402
from speculators.training.run import Job, train  # noqa: E402
from speculators.training.target import FrozenTarget  # noqa: E402
from tests.conditional.__main__ import Experiment  # noqa: E402
from tests.conditional.arms import ROWS, build_arms, timed  # noqa: E402
from tests.conditional.graph import with_tree  # noqa: E402
from tests.conditional.trainees import Router  # noqa: E402
from tests.conditional.tree import OutputTree, balanced_leaves, path_signs  # noqa: E402
from tests.planted import randomise  # noqa: E402
from tests.speculators.training.samples import ignore, write_directory, written_by  # noqa: E402
from tests.tiny import TinyTargets  # noqa: E402

pytestmark = pytest.mark.torch

WIDTH, VOCABULARY, DRAFTED, COUNT = 64, 96, 64, 10
DICE = np.random.default_rng(3)
KEPT = np.sort(DICE.permutation(VOCABULARY)[:DRAFTED])
NODES = (DICE.standard_normal((15, WIDTH)) / 4).astype(np.float32)
TREE = OutputTree(NODES, DICE.permutation(DRAFTED).reshape(16, 4), read=5)


@pytest.fixture(scope="module")
def checkpoint() -> MlpSpeculatorCheckpoint:
    config = MlpSpeculatorConfig(vocab_size=VOCABULARY, emb_dim=WIDTH, n_predict=1, top_k_tokens_per_head=[3])
    model = MlpSpeculator(config)
    randomise(model)
    return model.to_checkpoint()


def drafted(
    checkpoint: MlpSpeculatorCheckpoint,
    tree: OutputTree | None,
    path: Path,
    rows: int = 7,
    precision: Any = "fp32",
) -> dict[str, NDArray[Any]]:
    model = build_mlp_stage(checkpoint, 0, KEPT, precision=precision, count=COUNT)
    if tree is not None:
        head = checkpoint.tensors["head.0.weight"][KEPT]
        model = with_tree(model, head, KEPT, tree, name="head", precision=precision, count=COUNT)
        assert not any(tensor.name.startswith("head") for tensor in model.graph.initializer)
    onnx.save(model, str(path / "stage.onnx"))
    how = settings(precision=precision, widths=(WIDTH,), threads=2)
    compiled = PlainGraph(path / "stage.onnx", how, LinearLayers(native=instructions() is not None))
    states = np.random.default_rng(6).standard_normal((rows, WIDTH)).astype(np.float32)
    found = compiled({"state": states, "tokens": np.arange(rows)})
    return {name: np.array(values) for name, values in found.items()}


def reference(
    states: NDArray[np.float32], checkpoint: MlpSpeculatorCheckpoint, tree: OutputTree
) -> NDArray[np.float64]:
    """Log-probabilities ``[rows, V]`` with all computed in float64, and those of unread leaves masked, walk by walk."""
    head, found = (
        checkpoint.tensors["head.0.weight"].astype(np.float64),
        np.full((len(states), VOCABULARY), -np.inf),
    )
    for row, state in enumerate(states.astype(np.float64)):
        walks = []
        for leaf in range(len(tree.leaves)):
            node, total = 0, 0.0
            for level in reversed(range(len(tree.leaves).bit_length() - 1)):
                second = leaf >> level & 1
                score = float(tree.nodes[node].astype(np.float64) @ state)
                total -= np.logaddexp(0, -score if second else score)
                node = 2 * node + 1 + second
            walks.append(total)
        best = np.argsort(walks)[::-1][: tree.read]
        tokens = KEPT[tree.leaves[best].ravel()]
        logits = head[tokens] @ state
        share = np.logaddexp.reduce(np.array(walks)[best])
        found[row, tokens] = logits - np.logaddexp.reduce(logits) + share
    return found


@pytest.mark.parametrize("rows", [1, 7])
def test_conditional_execution_is_the_masked_reference(
    rows: int, checkpoint: MlpSpeculatorCheckpoint, tmp_path: Path
) -> None:
    found = drafted(checkpoint, TREE, tmp_path, rows)
    expected = reference(found["next_state"], checkpoint, TREE)
    best = np.argsort(-expected, axis=1)[:, :COUNT]
    assert np.array_equal(found["candidates"], best)
    np.testing.assert_allclose(found["log_probs"], np.take_along_axis(expected, best, 1), atol=1e-4)
    other = reference(found["next_state"], checkpoint, replace(TREE, read=4))
    assert not np.allclose(found["log_probs"], -np.sort(-other, axis=1)[:, :COUNT], atol=1e-4)


def test_in_eight_bits_it_is_near_the_reference(checkpoint: MlpSpeculatorCheckpoint, tmp_path: Path) -> None:
    everything = replace(TREE, read=16)  # which leaf is the fifth may turn on a rounding
    found = drafted(checkpoint, everything, tmp_path, precision="int8")
    expected = reference(found["next_state"], checkpoint, everything)
    np.testing.assert_allclose(
        found["log_probs"], np.take_along_axis(expected, found["candidates"], 1), atol=0.1
    )


def test_with_all_leaves_read_it_is_the_dense_layer(
    checkpoint: MlpSpeculatorCheckpoint, tmp_path: Path
) -> None:
    dense = drafted(checkpoint, None, tmp_path)
    found = drafted(checkpoint, replace(TREE, read=16), tmp_path)
    assert np.array_equal(found["candidates"], dense["candidates"])
    np.testing.assert_allclose(found["log_probs"], dense["log_probs"], atol=1e-4)
    assert not np.array_equal(drafted(checkpoint, TREE, tmp_path)["candidates"], dense["candidates"])


def test_only_rows_of_the_leaves_that_are_read_matter(
    checkpoint: MlpSpeculatorCheckpoint, tmp_path: Path
) -> None:
    before = drafted(checkpoint, TREE, tmp_path, rows=1)
    unread = np.flatnonzero(np.isinf(reference(before["next_state"], checkpoint, TREE)[0]))

    def without(ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        head = checkpoint.tensors["head.0.weight"].copy()
        head[ids] = np.nan
        changed = {**checkpoint.tensors, "head.0.weight": head}
        return drafted(Checkpoint(checkpoint.config, changed), TREE, tmp_path, rows=1)

    assert all(np.array_equal(values, before[name]) for name, values in without(unread).items())
    # Where such a value goes in the choice of the likeliest depends on how it is vectorised.
    assert not np.isfinite(without(before["candidates"][0, :1])["log_probs"]).all()


def test_leaves_hold_like_rows_and_every_row_once() -> None:
    group = DICE.permutation(np.repeat(np.arange(4), 16))
    rows = (DICE.standard_normal((4, 8)) * 10)[group] + DICE.standard_normal((64, 8))
    found = balanced_leaves(rows.astype(np.float32), 2)
    assert sorted(found.ravel().tolist()) == list(range(64))
    assert all(len(set(group[leaf])) == 1 for leaf in found)
    assert any(len(set(group[leaf])) > 1 for leaf in DICE.permutation(64).reshape(4, 16))
    assert all(np.count_nonzero(path) == 3 for path in path_signs(8))


def test_a_tree_learns_where_the_target_goes() -> None:
    torch.manual_seed(0)
    output = torch.randn(32, 16)
    leaves = torch.from_numpy(balanced_leaves(output.numpy(), 3))
    router, states, labels = Router(leaves, 16), output + 0.1 * torch.randn(32, 16), torch.arange(32)
    hard = Teacher(None, labels, torch.ones(32))
    soft = Teacher(torch.eye(32, dtype=torch.bfloat16), labels, torch.ones(32))
    assert torch.allclose(router.log_probs(states).exp().sum(-1), torch.ones(32), atol=1e-5)
    dense = (states @ output.T).argmax(-1)
    before = int((router.likeliest(states, output, 1) == dense).sum())
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    for _ in range(80):
        loss = router(states, hard)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 12 and int((router.likeliest(states, output, 1) == dense).sum()) > 24
    assert float(router(states, soft).detach()) == pytest.approx(
        float(router(states, hard).detach()), abs=1e-5
    )


MakeExperiment = Callable[..., Experiment]


@pytest.fixture
def make_experiment(tiny_targets: TinyTargets, tmp_path: Path, no_curves: None) -> MakeExperiment:
    """On a drafter of 192 tokens that was trained for a moment; in the directory `name`."""
    source = tiny_targets.source("llama")
    write_directory(tmp_path / "training", source, written_by(FrozenTarget(source, torch.device("cpu")), 256))
    settings = {
        "depth": 3,
        "unroll": 3,
        "draft_vocab_size": 192,
        "batch_tokens": 256,
        "mixed_precision": False,
    }
    training = {
        "directory": tmp_path / "training",
        "epochs": 1,
        "learning_rate": 3e-3,
        "device": "cpu",
        **settings,
    }

    def make(method: str, name: str = "experiment") -> Experiment:
        checkpoint, spec = tmp_path / f"{method}-checkpoint", TrainingSpec.model_validate(training)
        if not checkpoint.exists():
            train(Job(method, method, source, checkpoint, spec), ignore, ignore)
        content = {
            "name": "tiny",
            "target": {"model": source},
            "engine": {"precision": "fp32", "threads": 1, "max_sequence_length": 512},
            "speculation": {"method": method, "checkpoint": checkpoint},
            "training": training,
        }
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        return Experiment(
            DeploymentSpec.model_validate(content),
            samples=200,
            held_out_every=32,
            depth=3,
            directory=directory,
        )

    return make


@pytest.mark.parametrize("method", ["eagle3", "mlp_speculator"])
def test_acceptance_with_all_leaves_read_is_the_dense_layers(
    method: str, make_experiment: MakeExperiment
) -> None:
    experiment = make_experiment(method)
    experiment.train(2)
    lengths = {name: found.length for name, found in experiment.accepted([192, 8], [1, 8]).items()}
    assert lengths["8 of 8 leaves"] == lengths["192 rows"]
    if method == "eagle3":  # what the other one drafts is hardly ever right here
        assert max(lengths["1 of 8 leaves"], lengths["8 rows"]) < lengths["192 rows"]


def test_training_is_taken_up_where_it_was_stopped(make_experiment: MakeExperiment, monkeypatch: Any) -> None:
    whole = make_experiment("mlp_speculator", "whole").train(1)
    stopped = make_experiment("mlp_speculator", "stopped")

    class Stopped(Exception):
        pass

    class StoppingRun(TrainingRun):
        def _step(self, step: int) -> Any:
            if step == 4:
                raise Stopped
            if step == 3:
                self._save(3)
            return super()._step(step)

    with monkeypatch.context() as patch:
        patch.setattr("tests.conditional.__main__.TrainingRun", StoppingRun)
        with pytest.raises(Stopped):
            stopped.train(1)
    resumed = make_experiment("mlp_speculator", "stopped").train(1)
    assert np.array_equal(resumed.nodes, whole.nodes) and np.abs(whole.nodes).max() > 0
    assert not np.array_equal(make_experiment("mlp_speculator", "longer").train(2).nodes, whole.nodes)


@pytest.mark.parametrize("method", ["eagle3", "mlp_speculator"])
def test_all_arms_are_compiled_and_timed(
    method: str, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    experiment = make_experiment(method)
    tree = experiment._routed.router.tree()
    built = build_arms(experiment.spec, experiment.by_use.numpy(), tree, [64], [1, 8])
    expected = {"192 rows", "64 rows", "32 rows", "1 of 8 leaves", "8 of 8 leaves"}
    assert set(built) == expected | ({"32 inner neurons"} if method == "eagle3" else set())
    onnx.save(built["1 of 8 leaves"], str(tmp_path / "arm.onnx"))
    times = timed(experiment.spec, tmp_path / "arm.onnx")
    assert set(times) == set(ROWS) and times[1]() > 0


def test_methods_without_such_an_output_are_refused(tmp_path: Path) -> None:
    content = {"name": "tiny", "target": {"model": tmp_path}, "speculation": {"method": "anpd"}}
    with pytest.raises(SpecError, match="tiny drafts by anpd; eagle3 and mlp_speculator"):
        Experiment(
            DeploymentSpec.model_validate(content), samples=1, held_out_every=32, depth=3, directory=tmp_path
        )
