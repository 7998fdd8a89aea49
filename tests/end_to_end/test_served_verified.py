"""`verify` with two servers, asked through the text door of a real one: the embedded engine, which is exact."""

from __future__ import annotations

from cli.verify import _asks
from client import DrafthouseClient
from engine.lossless.two_servers import TwoServerSettings, verify_two_servers
from tests.end_to_end.deployment import Deployment

PROMPTS = {"counting": "one two three one two three one two", "letters": "a b a b a b", "other": "xyz"}
SETTINGS = TwoServerSettings(max_tokens=16, concurrency=(1, 3), sampled_prompts=2, draws=40, drawn_tokens=3)


def test_an_exact_server_agrees_with_itself_and_drawn_answers_are_caught(served: Deployment) -> None:
    with DrafthouseClient(served.grpc) as client:
        ask = _asks(client)
        checks = list(verify_two_servers(PROMPTS, ask, ask, SETTINGS, lambda output: None))
    told = [(check.name, check.outcome) for check in checks]
    *greedy, sampled = checks
    assert all(check.passed for check in greedy), told
    assert sum("3 of 3 prompts equal" in check.outcome for check in greedy) == 4, told
    assert sampled.passed is not False, "a random model is nearly as flat at another temperature"
