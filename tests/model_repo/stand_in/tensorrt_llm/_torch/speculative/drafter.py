"""The base class of drafters, as from 1.2 on."""

from abc import ABC, abstractmethod


class Drafter(ABC):
    def __init__(
        self, max_draft_len=None, max_total_draft_tokens=None, max_concurrency=None, draft_len_schedule=None
    ):
        self.max_draft_len, self.max_total_draft_tokens = max_draft_len, max_total_draft_tokens
        self.max_concurrency, self.draft_len_schedule = max_concurrency, draft_len_schedule

    @abstractmethod
    def prepare_draft_tokens(self, scheduled_requests, resource_manager=None):
        raise NotImplementedError

    def update_max_total_draft_tokens(self, new_max_total_draft_tokens):
        self.max_total_draft_tokens = new_max_total_draft_tokens
