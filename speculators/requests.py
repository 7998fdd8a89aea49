"""The running requests of a speculator: a state for each, and loud errors for book-keeping that went wrong."""

from __future__ import annotations

from typing import Generic, TypeVar

State = TypeVar("State")


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
