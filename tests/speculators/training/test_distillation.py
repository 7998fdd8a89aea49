"""The fused loss equals plain PyTorch, and so do its gradients."""

import pytest

torch = pytest.importorskip("torch")

from speculators.training.distillation import distill, teach  # noqa: E402

pytestmark = pytest.mark.torch

ROWS, WIDTH, VOCABULARY = 2500, 24, 60  # more rows than a chunk


@pytest.mark.parametrize("soft", [True, False])
def test_loss_hits_and_gradients_are_those_of_plain_cross_entropy(soft: bool) -> None:
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

    assert loss.item() == pytest.approx(plain.item(), rel=0.01)
    sure = (logits.topk(2).values @ torch.tensor([1.0, -1.0])) > 0.1  # not within bfloat16 of a tie
    assert torch.equal(hits[sure], (logits.argmax(-1) == labels)[sure])
    for mine, theirs in ((states.grad, plain_states.grad), (output.grad, plain_output.grad)):
        assert mine is not None and theirs is not None
        assert float((mine - theirs).norm() / theirs.norm()) < 0.02


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
