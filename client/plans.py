"""What a client method is about to do, checked before anything is sent. Sync and asyncio share it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from client.contract import Declared, Request, text_request, token_request
from client.options import SamplingOptions, check_deadline, check_options, check_prompt, check_token_ids


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked request, short of the tensor shapes that only the model's metadata tells."""

    model: str
    request_id: str
    deadline: float | None
    build: Callable[[Mapping[str, Declared]], Request]
    """Gives the request for a model that declares these inputs."""


def text_plan(
    model: str,
    prompt: str,
    options: SamplingOptions,
    *,
    deadline: float | None,
    request_id: str | None,
) -> Plan:
    """Check a request for text; raises `InvalidRequest`."""
    check_deadline(deadline)
    prompt, checked, name = check_prompt(prompt), check_options(options), request_id or uuid.uuid4().hex

    def build(declared: Mapping[str, Declared]) -> Request:
        return text_request(model, declared, prompt, checked, request_id=name)

    return Plan(model, name, deadline, build)


def token_plan(
    model: str,
    ids: Sequence[int],
    end_id: int | None,
    options: SamplingOptions,
    *,
    deadline: float | None,
    request_id: str | None,
) -> Plan:
    """Check a request for token ids; raises `InvalidRequest`."""
    check_deadline(deadline)
    tokens, checked, name = check_token_ids(ids), check_options(options), request_id or uuid.uuid4().hex

    def build(declared: Mapping[str, Declared]) -> Request:
        return token_request(model, declared, tokens, end_id, checked, request_id=name)

    return Plan(model, name, deadline, build)
