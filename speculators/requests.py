"""The running requests of a speculator: a state for each, and loud errors for book-keeping that went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

State = TypeVar("State")


class Growing(Protocol):
    """What is kept of a text."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""


Text = TypeVar("Text", bound=Growing)


class Requests(Generic[State]):
    """States by request id.

    Args:
        method: what errors call the speculator.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._states: dict[int, State] = {}

    def start(self, request_id: int, state: State) -> None:
        """Begin a request.

        Raises:
            ValueError: it is running already.
        """
        if request_id in self._states:
            raise ValueError(
                f"{self._method}: request {request_id} is already running; finish it before starting it again"
            )
        self._states[request_id] = state

    def __getitem__(self, request_id: int) -> State:
        """Its state.

        Raises:
            KeyError: it is not running.
        """
        try:
            return self._states[request_id]
        except KeyError:
            raise KeyError(f"{self._method}: request {request_id} is not running; start it first") from None

    def finish(self, request_id: int) -> State:
        """Forget a request and give its state back.

        Raises:
            KeyError: it is not running.
        """
        state = self[request_id]
        del self._states[request_id]
        return state


class Texts(Generic[Text]):
    """What a lookup keeps of each request's text, which is brought up to date when it is asked for.

    So a request for which nothing is ever looked up costs no more than a list of what it has emitted.

    Args:
        method: what errors call the speculator.
    """

    def __init__(self, method: str) -> None:
        self._requests: Requests[tuple[Text, list[Sequence[int]]]] = Requests(method)

    def start(self, request_id: int, text: Text, tokens: Sequence[int]) -> None:
        """Begin a request with what is kept of an empty text, and its first tokens."""
        self._requests.start(request_id, (text, [tokens]))

    def extend(self, request_id: int, tokens: Sequence[int]) -> None:
        """Append tokens to a request's text."""
        self._requests[request_id][1].append(tokens)

    def __getitem__(self, request_id: int) -> Text:
        """What is kept of its text, with all of it taken in."""
        text, waiting = self._requests[request_id]
        for tokens in waiting:
            text.extend(tokens)
        waiting.clear()
        return text

    def finish(self, request_id: int) -> None:
        """Forget a request."""
        self._requests.finish(request_id)
