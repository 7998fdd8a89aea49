"""`UserProvidedDecodingConfig`, which holds Python objects."""


class UserProvidedDecodingConfig:
    def __init__(self, max_draft_len, drafter, resource_manager=None, max_concurrency=None):
        self.max_draft_len, self.drafter, self.resource_manager = max_draft_len, drafter, resource_manager
        self.max_concurrency = max_concurrency
