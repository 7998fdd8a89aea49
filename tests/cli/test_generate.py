"""What `drafthouse generate` says below an answer, where a figure is undefined as well."""

import pytest

from cli.serve import _about
from client import Acceptance, GenerationResult, Timings


def result(tokens: int | None, acceptance: Acceptance | None) -> GenerationResult:
    timings = Timings(0, None, None)
    return GenerationResult("1", "", None, None, "stop", 3, tokens, timings, acceptance, kv_cache=None)


@pytest.mark.parametrize(
    ("tokens", "acceptance", "said"),
    [
        (6, Acceptance(8, 3, 6), "6 tokens, finished: stop, acceptance length 2.00, rate 0.38"),
        (3, Acceptance(0, 0, 3), "3 tokens, finished: stop, acceptance length 1.00, nothing drafted"),
        (0, Acceptance(0, 0, 0), "0 tokens, finished: stop, nothing drafted"),
        (0, Acceptance(5, 0, 0), "0 tokens, finished: stop, rate 0.00"),
        (4, None, "4 tokens, finished: stop"),
        (None, None, "finished: stop"),
    ],
)
def test_only_figures_that_there_are(tokens: int | None, acceptance: Acceptance | None, said: str) -> None:
    assert ", ".join(_about(result(tokens, acceptance))) == said
