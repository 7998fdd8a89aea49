"""ANPD as a drafter of TensorRT-LLM: against the base classes of each release, and the embedded engine's drafts."""

from __future__ import annotations

import importlib
import pickle
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from speculators.anpd import AnpdSpeculator
from speculators.outcome import StepOutcome

_DRAFTER = "tensorrt_llm._torch.speculative.drafter"
_MANAGER = "tensorrt_llm._torch.pyexecutor.resource_manager"


class BaseResourceManager(ABC):
    @abstractmethod
    def get_max_resource_count(self): ...

    @abstractmethod
    def get_needed_resource_to_completion(self, request): ...

    def free_resources(self, request):
        raise NotImplementedError


class DrafterOf11(ABC):
    """1.0 and 1.1."""

    def __init__(self, max_concurrency=None):
        self.max_concurrency = max_concurrency

    @abstractmethod
    def prepare_draft_tokens(self, scheduled_requests, resource_manager=None): ...


class DrafterBetween(DrafterOf11):
    """Between 1.1 and 1.2."""

    def __init__(self, max_draft_tokens, max_concurrency=None):
        super().__init__(max_concurrency)
        self.max_draft_tokens = max_draft_tokens


class DrafterOf12(DrafterOf11):
    """1.2 and newer."""

    def __init__(
        self, max_draft_len=None, max_total_draft_tokens=None, max_concurrency=None, draft_len_schedule=None
    ):
        super().__init__(max_concurrency)
        self.max_draft_len, self.max_total_draft_tokens = max_draft_len, max_total_draft_tokens
        self.draft_len_schedule = draft_len_schedule

    def update_max_total_draft_tokens(self, new):
        self.max_total_draft_tokens = new


@pytest.fixture(params=[DrafterOf11, DrafterBetween, DrafterOf12])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`engine.user_drafter` on the base classes of a release."""
    for name in (_DRAFTER, _MANAGER):
        for end in range(1, name.count(".") + 1):
            parent = ".".join(name.split(".")[:end])
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, _DRAFTER, SimpleNamespace(Drafter=request.param))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, _MANAGER, SimpleNamespace(BaseResourceManager=BaseResourceManager))  # type: ignore[arg-type]
    sys.modules.pop("engine.user_drafter", None)
    yield importlib.import_module("engine.user_drafter")
    sys.modules.pop("engine.user_drafter", None)


class Request:
    """What a drafter may read of a request of the PyTorch backend, and the one field that it sets."""

    def __init__(self, request_id: int, prompt: list[int], max_new: int, place: int | None) -> None:
        self.request_id, self.py_batch_idx = request_id, place
        self.py_orig_prompt_len, self.py_max_new_tokens = len(prompt), max_new
        self.py_draft_tokens: list[int] | None = None
        self.tokens = list(prompt)

    def get_tokens(self, beam: int) -> list[int]:
        assert beam == 0
        return self.tokens


def draft(drafter: Any, *requests: Request) -> None:
    drafter.prepare_draft_tokens(SimpleNamespace(generation_requests=list(requests)), None)


def test_drafts_are_those_of_the_embedded_engine(module: Any) -> None:
    randomness = random.Random(7)
    drafter = module.AnpdDrafter(draft_length=5, ngram=4, max_sequence_length=10_000)
    embedded = AnpdSpeculator(ngram=4, draft_length=5)
    requests = [
        Request(number, [randomness.randrange(6) for _ in range(9)], 10_000, place)
        for number, place in enumerate((1, 0, None))
    ]
    for request in requests:
        embedded.start(request.request_id, request.tokens)
    drafted = 0
    for _ in range(60):
        draft(drafter, *requests)
        for request in requests:
            (tree,) = embedded.propose([request.request_id], [5])
            assert request.py_draft_tokens == list(tree.tokens)
            drafted += len(tree.tokens)
            accepted = [randomness.randrange(6) for _ in range(randomness.randrange(1, 5))]
            request.tokens += accepted
            embedded.observe(request.request_id, StepOutcome(accepted))
    assert drafted > 100


def test_nothing_is_drafted_past_the_end(module: Any) -> None:
    drafter = module.AnpdDrafter(draft_length=8, ngram=3, max_sequence_length=30)
    lengths = {}
    for max_new in range(1, 20):
        request = Request(max_new, [1, 2, 3] * 6, max_new, 0)
        draft(drafter, request)
        lengths[max_new] = len(request.py_draft_tokens or [])
    # 18 tokens are there: at most 12 more fit the engine, one of which is the target's own.
    assert lengths == {max_new: min(8, max_new - 1, 11) for max_new in range(1, 20)}


def test_an_unknown_text_drafts_nothing(module: Any) -> None:
    request = Request(1, [1, 2, 3, 4], 100, None)
    draft(module.AnpdDrafter(4, 3, 1000), request)
    assert request.py_draft_tokens == []


def test_tables_go_with_their_requests(module: Any) -> None:
    drafter = module.AnpdDrafter(draft_length=4, ngram=3, max_sequence_length=1000, max_requests=3)
    tables = drafter.spec_resource_manager
    requests = [Request(number, [1, 2, 1, 2], 50, None) for number in range(3)]
    draft(drafter, *requests)
    assert len(tables) == 3 == tables.get_max_resource_count()
    for request in requests:
        tables.free_resources(request)
        tables.free_resources(request)  # the runtime may do so twice
    assert len(tables) == 0


def test_an_id_that_is_used_again_starts_afresh(module: Any) -> None:
    drafter = module.AnpdDrafter(draft_length=2, ngram=2, max_sequence_length=1000)
    draft(drafter, Request(5, [1, 2, 1, 2, 1], 50, None))
    again = Request(5, [3, 4, 3], 50, None)
    draft(drafter, again)
    assert again.py_draft_tokens == [4, 3]


def test_the_draft_length_follows_the_runtime(module: Any) -> None:
    drafter = module.AnpdDrafter(draft_length=6, ngram=2, max_sequence_length=1000)
    if not hasattr(drafter, "update_max_total_draft_tokens"):
        pytest.skip("this release does not change it")
    drafter.update_max_total_draft_tokens(2)
    request = Request(1, [1, 2] * 5, 50, None)
    draft(drafter, request)
    assert len(request.py_draft_tokens or []) == 2


def test_the_base_class_gets_what_it_takes(module: Any) -> None:
    drafter = module.AnpdDrafter(
        draft_length=6, ngram=2, max_sequence_length=1000, max_requests=8, max_concurrency=3
    )
    assert drafter.max_concurrency == 3
    for name in ("max_draft_tokens", "max_draft_len", "max_total_draft_tokens"):
        assert getattr(drafter, name, 6) == 6


def test_it_can_be_sent_to_a_worker_process(module: Any) -> None:
    drafter = pickle.loads(pickle.dumps(module.AnpdDrafter(4, 3, 1000)))
    request = Request(1, [1, 2, 3, 1, 2], 50, None)
    draft(drafter, request)
    assert request.py_draft_tokens == [3, 1, 2, 3]
