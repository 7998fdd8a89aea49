"""By which ids a request may be stopped by another: those that only who sent it can know."""

import re

from engine.errors import RequestError

# As `tensorrt_llm_bls` gives its calls, by which it stops them.
_RANDOM_ID = re.compile(r"[0-9a-f]{32}")


def check_stop_id(identity: str, *, by_any: bool) -> None:
    """Check the id of a request that is to stop those of the same id.

    Args:
        identity: as it came, or empty.
        by_any: whether an id that others could guess will do, too (`serving.stop_by_id`).

    Raises:
        RequestError: there is none, or others could guess it.
    """
    if not identity:
        raise RequestError("stop is set but the request has no id; give it that of the request to be stopped")
    if not by_any and not _RANDOM_ID.fullmatch(identity):
        raise RequestError(
            f"others could guess the id {identity!r}, so nothing is stopped by it; cancel the request, or give it "
            "an id of 32 random hexadecimal digits, like uuid4().hex, or set serving.stop_by_id in the spec"
        )
