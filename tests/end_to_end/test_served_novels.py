"""Texts of many megabytes are refused as fast as they come, on every door."""

from __future__ import annotations

import pytest

from tests.end_to_end.calls import GrpcCaller, ServerRefusal, text_inputs
from tests.end_to_end.deployment import Deployment

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize("text", ["one two three " * 2_000_000, "one " * 100_000], ids=["28 MB", "400 kB"])
def test_a_novel_is_refused_before_it_is_tokenised(served: Deployment, model: str, text: str) -> None:
    with GrpcCaller(served.grpc) as caller:
        with pytest.raises(
            ServerRefusal,
            match=rf"invalid request: .*prompt('s| has) {len(text)} characters.* more than the limit",
        ):
            caller.infer(model, text_inputs(text, max_tokens=4))
        assert caller.infer(model, text_inputs("one two three", max_tokens=4))
