"""A plan behind a real Triton: output with and without drafts is the same, and `/metrics` tells the decisions."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from client import DrafthouseClient, GenerationResult
from tests.end_to_end.deployment import Deployment, deployed, wait_until
from tests.end_to_end.tiny_tokenizers import TOKENIZER_NAMES
from tests.planner.synthetic_plan import plan_from
from tests.planner.synthetic_profile import profile, records

pytestmark = pytest.mark.triton

PROMPTS = [f"one two three four {number}" for number in range(8)]
TOKENS = 60


def cheap(context: int, batch: int, size: int) -> float:
    return 10.0 + 0.1 * batch * size


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("planned")
    found = [profile(records(rate, drafted=6), cheap, name=name) for rate, name in ((0.6, "a"), (0.7, "b"))]
    lookup = {"method": "prompt_lookup", "draft_length": 6}
    plan = plan_from(
        [replace(found[0], speculation={"method": "anpd"}), replace(found[1], speculation=lookup)]
    )
    (folder / "plan.json").write_text(plan.model_dump_json())
    speculation = {"plan": str(folder / "plan.json")}
    with deployed(folder, TOKENIZER_NAMES[0], speculation=speculation) as deployment:
        yield deployment


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 8])
def test_output_is_that_without_drafts(planned: Deployment, temperature: float, batch: int) -> None:
    with DrafthouseClient(planned.grpc) as client:

        def ask(number: int, drafts: int | None) -> GenerationResult:
            prompt = PROMPTS[number]
            options = {"temperature": temperature, "seed": number, "num_draft_tokens": drafts}
            return client.generate(prompt, max_tokens=TOKENS, **options)  # type: ignore[arg-type]

        with ThreadPoolExecutor(batch) as threads:
            drafted = list(threads.map(lambda number: ask(number, None), range(batch)))
        plain = [ask(number, 0) for number in range(batch)]
    assert [each.text for each in drafted] == [each.text for each in plain]
    assert all(each.acceptance is None or not each.acceptance.draft_tokens for each in plain)
    if not temperature:
        assert any(each.acceptance is not None and each.acceptance.accepted_tokens for each in drafted)


def test_decisions_are_told(planned: Deployment) -> None:
    def steps() -> dict[str, float]:
        return {
            name: value
            for name, value in planned.metrics().items()
            if name.startswith("drafthouse_plan_steps_total/")
        }

    before = sum(steps().values())
    with DrafthouseClient(planned.grpc) as client:
        client.generate(PROMPTS[0], max_tokens=TOKENS)
    wait_until(lambda: sum(steps().values()) > before, "steps are counted")
    found = planned.metrics()
    assert {name for name in steps() if "/1/" in name} == {
        f"drafthouse_plan_steps_total/1/{name}" for name in ("none", "b")
    }
    assert found["drafthouse_plan_draft_tokens_total/1/b"] > 0
    assert found["drafthouse_plan_seconds_total/1/measured"] > 0
    assert found["drafthouse_plan_tokens_total/1/emitted"] > 0
