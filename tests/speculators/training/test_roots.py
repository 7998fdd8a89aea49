"""Drafts are trained from where a learned token is drafted; what is left out of the rest changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from speculators.data.samples import Sample  # noqa: E402
from speculators.training.features import Batch, collate  # noqa: E402
from speculators.training.target import FrozenTarget  # noqa: E402
from speculators.training.trainee import Trainee  # noqa: E402
from speculators.training.unrolled import Roots  # noqa: E402
from tests.speculators.training.conftest import section  # noqa: E402
from tests.speculators.training.samples import begun_from  # noqa: E402

pytestmark = pytest.mark.torch

DEPTH = 3


@pytest.mark.parametrize("seed", range(20))
def test_roots_are_where_a_learned_token_is_drafted(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    length, depth = int(torch.randint(1, 12, (), generator=generator)), seed % 5 + 1
    learned = torch.rand(4, length, generator=generator) < 0.2
    roots = Roots.reaching(learned, depth)
    for row, tokens in enumerate(learned.tolist()):
        wanted = [root for root in range(length) if any(tokens[root + 2 : root + depth + 2])]
        assert roots.position[row, : len(wanted)].tolist() == wanted
        assert roots.place[row, wanted].tolist() == list(range(len(wanted)))
        assert not roots.position[row, len(wanted) :].any()
    assert roots.position.shape[1] == max(1, most(learned, depth))


def most(learned: Any, depth: int) -> int:
    return max(
        sum(any(row[root + 2 : root + depth + 2]) for root in range(len(row))) for row in learned.tolist()
    )


def begun(
    method: str, start: Path, target: FrozenTarget, samples: list[Sample], **settings: Any
) -> tuple[Trainee, Batch]:
    """The trainee of a checkpoint, and a batch of conversations with one and with two answers, and with none."""
    training = section(start.parent, depth=DEPTH, unroll=DEPTH, from_pretrained=start, **settings)
    trainee, source = begun_from(method, training, target, samples)
    chosen = samples[:24]
    batch = collate(chosen, source, everything=False)
    learned = torch.zeros_like(batch.learned)
    for row, sample in enumerate(chosen[1:], start=1):
        middle, end = len(sample.tokens) // 2, len(sample.tokens)
        learned[row, middle if row % 2 else end - 3 : end] = True
        learned[row, 2 : 2 + row % 4] = True
    return trainee, Batch(batch.tokens, learned, batch.fused, batch.final)


@pytest.mark.parametrize(("method", "layers"), [("eagle3", 1), ("peagle", 1), ("peagle", 2), ("peagle", 3)])
def test_loss_hits_and_gradients_are_those_of_chains_from_everywhere(
    method: str,
    layers: int,
    checkpoint_of: Callable[[str], Path],
    tiny_target: FrozenTarget,
    tiny_samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"drafter_layers": layers} if method == "peagle" else {}
    trainee, batch = begun(method, checkpoint_of("eagle3"), tiny_target, tiny_samples, **settings)

    def learn() -> tuple[Any, Any, list[Any]]:
        trainee.zero_grad()
        loss, hits = trainee(batch)
        loss.backward()
        return loss.detach(), hits, [parameter.grad for parameter in trainee.parameters()]

    loss, hits, slopes = learn()
    assert int(hits.sum()) > 0
    rows = Roots.reaching(batch.learned, DEPTH).position.shape[1]
    assert rows < batch.tokens.shape[1] - 1

    def everywhere(learned: Any, depth: int) -> Roots:
        positions = torch.arange(learned.shape[1]).expand(learned.shape)
        return Roots(positions, positions)

    monkeypatch.setattr(Roots, "reaching", everywhere)
    all_loss, all_hits, all_slopes = learn()
    torch.testing.assert_close(loss, all_loss, rtol=1e-5, atol=1e-6)
    assert torch.equal(hits, all_hits)
    for found, expected in zip(slopes, all_slopes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_peagle_from_eagle3_drafts_its_first_tokens(
    layers: int, checkpoint_of: Callable[[str], Path], tiny_target: FrozenTarget, tiny_samples: list[Sample]
) -> None:
    """Before it has learned anything: layers behind the first add nothing."""
    start = checkpoint_of("eagle3")
    chains, batch = begun("eagle3", start, tiny_target, tiny_samples)
    blocks, _ = begun("peagle", start, tiny_target, tiny_samples, drafter_layers=layers)
    with torch.no_grad():
        chain, block = chains(batch)[1], blocks(batch)[1]
    assert int(chain[0].sum()) > 0
    assert torch.equal(chain[0], block[0])
    assert not torch.equal(chain[1], block[1])
