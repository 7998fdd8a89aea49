"""Muon where the device has no bfloat16: PyTorch's own, in another type."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from speculators.training import optimizers  # noqa: E402
from speculators.training.optimizers import Muon, orthogonal  # noqa: E402

pytestmark = pytest.mark.torch

SHAPES = ((24, 40), (40, 24), (32, 32))


def weights_after(steps: int, make: Any) -> list[Any]:
    """Of matrices that follow the same gradients; one has none."""
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    idle = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = make([{"params": [*matrices, idle]}], 0.02, 0.1)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()
    assert torch.equal(idle, torch.ones(4, 4))
    return [matrix.detach() for matrix in matrices]


def pytorchs(groups: Any, rate: float, decay: float) -> Any:
    return torch.optim.Muon(groups, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_it_learns_what_pytorchs_learns(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "product_type", lambda device: getattr(torch, kind))
    found, expected = weights_after(3, Muon), weights_after(3, pytorchs)
    begun = weights_after(0, Muon)
    for ours, theirs, before in zip(found, expected, begun, strict=True):
        moved = (theirs - before).norm()
        assert (ours - theirs).norm() < 0.03 * moved
        assert torch.equal(ours, theirs) == (kind == "bfloat16")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_turned_matrix_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    """Singular values end between 0.5 and 1.5, which are wherever they were."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = torch.linalg.svdvals(orthogonal(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7))
    assert 0.3 < float(found.min()) and float(found.max()) < 1.5
    assert float(torch.linalg.svdvals(matrix).max()) > 3
