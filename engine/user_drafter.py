"""ANPD as a user-provided drafter of TensorRT-LLM's PyTorch backend (both release lines).

The LLM API takes a drafter of one's own as a Python object: a `Drafter` that sets `request.py_draft_tokens` for every
request that is decoding, and a resource manager that is told when requests end. Here the manager keeps one
`NgramTable` a request and the drafter reads from it, so the drafts are those of the embedded engine for the same
tokens. Verification is exact match on sampled tokens, hence lossless at any temperature.

Both bases exist only where TensorRT-LLM is installed. The constructor of `Drafter` took `max_concurrency` alone in
1.0 and 1.1 and more from 1.2 on; it is given what its signature has. Objects are pickled into the worker process, so
this module must be importable there.

Interface: tensorrt_llm/_torch/speculative/drafter.py and ngram.py, pyexecutor/resource_manager.py; pull requests
#5204, #5805 and #6007.

Example::

    drafter = AnpdDrafter(draft_length=7, ngram=5, max_sequence_length=8192)
    config = UserProvidedDecodingConfig(
        max_draft_len=7, drafter=drafter, resource_manager=drafter.spec_resource_manager
    )
    llm = LLM(model=..., speculative_config=config, disable_overlap_scheduler=True)
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from tensorrt_llm._torch.pyexecutor.resource_manager import BaseResourceManager
from tensorrt_llm._torch.speculative.drafter import Drafter

from speculators.anpd import NgramTable


class AnpdTables(BaseResourceManager):  # type: ignore[misc]
    """The n-gram tables of the running requests, by request id."""

    def __init__(self, ngram: int, max_requests: int) -> None:
        super().__init__()
        self._ngram = ngram
        self._max_requests = max_requests
        self._tables: dict[int, NgramTable] = {}
        self._counted: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of requests that have a table."""
        return len(self._tables)

    def draft(self, request_id: int, tokens: Sequence[int], length: int) -> list[int]:
        """Continue a request's tokens (prompt and output so far) by at most `length`."""
        counted = self._counted.get(request_id, 0)
        if request_id not in self._tables or len(tokens) < counted:  # new, or begun again
            self._tables[request_id], counted = NgramTable(self._ngram), 0
        table = self._tables[request_id]
        table.extend(tokens[counted:])
        self._counted[request_id] = len(tokens)
        return list(table.draft(length))

    def free_resources(self, request: Any) -> None:
        """Forget a request that has ended, in whichever way."""
        self._tables.pop(request.request_id, None)
        self._counted.pop(request.request_id, None)

    def get_max_resource_count(self) -> int:
        """Requests that may run at once, as far as this manager is concerned."""
        return self._max_requests

    def get_needed_resource_to_completion(self, request: Any) -> int:
        """Tables are made on demand: no request has to wait for one."""
        return 0

    def prepare_resources(self, scheduled_batch: Any) -> None:
        """Nothing is needed before a step."""

    def update_resources(self, scheduled_batch: Any) -> None:
        """Nothing is due after a step: tables are brought up to date when they are read."""

    def add_dummy_requests(self, request_ids: Iterable[int]) -> None:
        """Warm-up requests need no table."""


class AnpdDrafter(Drafter):  # type: ignore[misc]
    """Drafts for the requests of a step, each from its own n-grams."""

    def __init__(
        self,
        draft_length: int,
        ngram: int,
        max_sequence_length: int,
        max_requests: int = 2048,
        max_concurrency: int | None = None,
    ) -> None:
        """Make the drafter and its tables (`spec_resource_manager`).

        Args:
            draft_length: most tokens drafted a step.
            ngram: longest n-gram.
            max_sequence_length: the engine's limit of prompt and output together.
            max_requests: requests that may run at once.
            max_concurrency: largest batch that still speculates; None: any.
        """
        wanted = {
            "max_draft_len": draft_length,
            "max_draft_tokens": draft_length,
            "max_total_draft_tokens": draft_length,
            "max_concurrency": max_concurrency,
        }
        known = inspect.signature(super().__init__).parameters
        super().__init__(**{name: value for name, value in wanted.items() if name in known})
        self.spec_resource_manager = AnpdTables(ngram, max_requests)
        self._draft_length = draft_length
        self._max_sequence_length = max_sequence_length

    def prepare_draft_tokens(self, scheduled_requests: Any, resource_manager: Any | None = None) -> None:
        """Set `py_draft_tokens` of every request that is decoding; an empty list: nothing is drafted.

        Never past the last token but one of a request: the target adds one of its own.
        """
        for request in sorted(scheduled_requests.generation_requests, key=_batch_order):
            tokens = list(request.get_tokens(0))
            end = min(request.py_orig_prompt_len + request.py_max_new_tokens, self._max_sequence_length)
            length = min(self._length(), end - 1 - len(tokens))
            request.py_draft_tokens = self.spec_resource_manager.draft(
                request.request_id, tokens, max(0, length)
            )

    def _length(self) -> int:
        """The draft length of this step, which newer releases change with the batch size."""
        current = getattr(self, "max_total_draft_tokens", None)
        return self._draft_length if current is None else min(self._draft_length, current)


def _batch_order(request: Any) -> tuple[bool, int]:
    """Requests in the order of the batch; those without a place in it yet come last, by id."""
    place = request.py_batch_idx
    return (True, request.request_id) if place is None else (False, place)
