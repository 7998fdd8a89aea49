"""What a server's prefix cache holds when a request comes, which is part of the experiment.

The arms of a comparison send the same prompts, again and again. A server that keeps the KV cache of ended requests
reads them only the first time, so the arm that comes second looks faster, and a deployment beside the first, with a
cache of its own, meets everything unread. Hence every cell of a sweep begins in one of two states, the same in all
arms:

*cold*: no request finds any part of its prompt. How that is reached depends on the server, and stands in the report:
 * ``off``: the server keeps nothing (`kv_cache_reuse: false`, `kv_cache.block_reuse: false`), so nothing is done.
 * ``salted``: each request has a `cache_salt` of its own. The embedded engine and TensorRT-LLM's LLM API (line A and B)
   share cache only among requests of the same salt, as vLLM's own server does by its field of this name. Prompts stay
   as they are, to the bit.
 * ``numbered``: the first message of each prompt begins with twelve digits of its own, ``[512907731846]``, for servers
   that take no salt, such as compiled TensorRT-LLM engines, whose C++ backend has no input for it. The prompts then
   differ in these digits between arms, and what the chat template puts before the first message is found by every
   request alike. If one server of a sweep needs it, all of them get it.
*warm*: each prompt of a cell has been read, whole and by the same arm, just before the cell (``read``). What is found
   is what the server shares: whole blocks of the prompt, as far as the cache has room for all of them.

There are other ways to have a server forget: to start it anew, to load its model anew (Triton's model control, where
it was started with `--model-control-mode=explicit`), or `POST /reset_prefix_cache` of vLLM's own server in developer
mode. None works on every server while it serves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from deployments.errors import DrafthouseError

Mode = Literal["cold", "warm"]
State = Literal["off", "salted", "numbered", "read"]

_DIGITS = 12
PLACE = f"[{'0' * _DIGITS}]"
"""What stands for the number in a prompt that is rendered but not sent yet."""

WORDS: Mapping[State, str] = {
    "off": "cold: the server keeps no prompts",
    "salted": "cold: each request has a cache_salt of its own",
    "numbered": "cold: each prompt begins with a number of its own",
    "read": "warm: each prompt was read once just before its cell",
}
"""Each state as a report says it."""


class CacheError(DrafthouseError, ValueError):
    """The state that was asked for cannot be had; the message says why."""


def states(mode: Mode, keeps: Mapping[str, bool | None], salts: Sequence[bool]) -> list[State]:
    """The state of each arm.

    Args:
        mode: what was asked for.
        keeps: by arm, whether its server keeps prompts; None: it does not say.
        salts: whether it takes a `cache_salt`.

    Raises:
        CacheError: warm, on a server that keeps nothing.
    """
    if mode == "warm":
        cold = [arm for arm, kept in keeps.items() if kept is False]
        if cold:
            raise CacheError(
                f"--cache warm: the server of {', '.join(cold)} keeps no prompts (engine.kv_cache_reuse or "
                "kv_cache.block_reuse is false); measure with --cache cold"
            )
        return ["read"] * len(keeps)
    if any(kept is not False and not salted for kept, salted in zip(keeps.values(), salts, strict=True)):
        return ["numbered"] * len(keeps)
    return ["off" if kept is False else "salted" for kept in keeps.values()]


def numbered(text: str, key: str) -> str:
    """A rendered prompt with a number in its place that is the key's alone."""
    digits = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10**_DIGITS
    return text.replace(PLACE, f"[{digits:0{_DIGITS}}]", 1)
