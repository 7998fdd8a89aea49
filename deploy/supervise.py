"""Serves until somebody ends it, and does what is to be done when the server dies: end with it, or start it again.

Example::

    supervise(lambda: running_server(spec), on_failure="restart", silence_seconds=60, tell=print)
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, NoReturn

from deploy.server import ServerDied, ServerProcess, TritonError
from deploy.watch import Watch

_PAUSES = (1.0, 5.0, 15.0)
"""Seconds before each try in a row to start it again, and before all that follow; it is given up when as many
in a row as there are pauses have not made it ready."""
_STEADY_SECONDS = 5.0
"""A server that dies sooner after it was ready is started again as if that try had failed, but never given up."""

OnFailure = Literal["stop", "restart"]


def supervise(
    run: Callable[[], AbstractContextManager[ServerProcess]],
    *,
    on_failure: OnFailure,
    silence_seconds: float,
    tell: Callable[[str], None],
) -> NoReturn:
    """Run a server for as long as it lives; being interrupted stops it.

    Args:
        run: starts it, and gives it when it is ready.
        on_failure: whether it is started again when it has died. What ran in it has ended with an error.
        silence_seconds: see `Watch`.
        tell: gets a line when it is started again.

    Raises:
        TritonError: it did not start.
        ServerDied: it has died, and is not to be started again, or could not be.
    """
    tries = 0  # in a row that did not make it run steadily
    failed = 0  # in a row that did not make it ready
    while True:
        since = time.monotonic()
        try:
            with run() as server:
                failed, since = 0, time.monotonic()
                Watch(server, silence_seconds).wait()
        except ServerDied as death:
            if on_failure == "stop":
                raise
            if time.monotonic() - since > _STEADY_SECONDS:
                tries = 0
            told = str(death)
        except TritonError as error:
            if not tries:
                raise
            failed += 1
            told = str(error)
        if failed == len(_PAUSES):
            raise ServerDied(f"{told}; it could not be started again")
        tell(f"{told}; starting it again")
        time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
        tries += 1
