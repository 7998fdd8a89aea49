"""The fused loss equals plain PyTorch, and so do its gradients."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from speculators.training import arithmetic, distillation  # noqa: E402
from speculators.training.arithmetic import product_type  # noqa: E402
from speculators.training.distillation import distill, teach  # noqa: E402

pytestmark = pytest.mark.torch

ROWS, WIDTH, VOCABULARY = 2500, 24, 60  # more rows than a chunk


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(("kind", "error"), [(torch.bfloat16, 0.02), (torch.float32, 0.003)])
def test_loss_hits_and_gradients_are_those_of_plain_cross_entropy(
    kind: Any, error: float, soft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "product_type", lambda device: kind)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, WIDTH, generator=generator, requires_grad=True)
    output = torch.randn(VOCABULARY, WIDTH, generator=generator).mul(0.3).requires_grad_()
    final, target_output = torch.randn(ROWS, WIDTH, generator=generator), torch.randn(VOCABULARY, WIDTH)
    labels = torch.randint(-1, VOCABULARY, (ROWS,), generator=generator)
    teacher = teach(final, target_output, labels, soft=soft)
    loss, hits = distill(states, output, teacher)
    (loss * 3).backward()

    plain_states, plain_output = (values.detach().clone().requires_grad_() for values in (states, output))
    logits = plain_states @ plain_output.T
    known = labels >= 0
    wanted = torch.softmax(final @ target_output.T, -1)[known] if soft else labels[known]
    plain = torch.nn.functional.cross_entropy(logits[known], wanted)
    (plain * 3).backward()

    assert loss.item() == pytest.approx(plain.item(), rel=error / 2)
    sure = (logits.topk(2).values @ torch.tensor([1.0, -1.0])) > 0.1  # not within bfloat16 of a tie
    assert torch.equal(hits[sure], (logits.argmax(-1) == labels)[sure])
    for mine, theirs in ((states.grad, plain_states.grad), (output.grad, plain_output.grad)):
        assert mine is not None and theirs is not None
        assert float((mine - theirs).norm() / theirs.norm()) < error


def test_rows_whose_token_cannot_be_drafted_teach_nothing() -> None:
    states = torch.randn(4, WIDTH, requires_grad=True)
    labels = torch.tensor([3, -1, 5, -1])
    loss, hits = distill(
        states,
        torch.randn(VOCABULARY, WIDTH),
        teach(states.detach(), torch.randn(VOCABULARY, WIDTH), labels, soft=True),
    )
    loss.backward()
    assert states.grad is not None
    assert states.grad.abs().sum(-1).gt(0).tolist() == [True, False, True, False]
    assert not hits[1] and not hits[3]


@pytest.mark.parametrize("has", [True, False])
def test_a_processor_without_bfloat16_multiplies_in_float32(
    has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_processor_has_bfloat16", lambda: has)
    assert product_type("cpu") == (torch.bfloat16 if has else torch.float32)
    assert product_type(torch.device("cuda")) == torch.bfloat16
