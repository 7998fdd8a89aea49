"""Values of requests, spread over their tokens, as vLLM's GPU kernel spreads them."""

import os

import pytest

torch = pytest.importorskip("torch")

from engine.vllm.plugin import allow, expand_batch_to_tokens  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("chosen", "then"),
    [(None, None), ("", "drafthouse"), ("mine", "mine,drafthouse"), ("drafthouse,mine", "drafthouse,mine")],
)
def test_it_is_loaded_also_where_somebody_chose_plugins(
    chosen: str | None, then: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("VLLM_PLUGINS", chosen)
    allow()
    assert os.environ.get("VLLM_PLUGINS") == then


def test_each_token_has_its_requests_value_and_greedy_ones_the_replacement() -> None:
    found = expand_batch_to_tokens(
        torch.tensor([0.5, 0.0, 0.7]),
        torch.tensor([2, 5, 6], dtype=torch.int32),
        6,
        replace_from=0,
        replace_to=1,
    )
    assert torch.equal(found, torch.tensor([0.5, 0.5, 1.0, 1.0, 1.0, 0.7]))
    counts = expand_batch_to_tokens(torch.tensor([3, 4], dtype=torch.int32), torch.tensor([0, 2]), 2)
    assert counts.tolist() == [4, 4] and counts.dtype == torch.int32
