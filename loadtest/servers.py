"""Asks the servers of a sweep, before anything is sent, who they are and what they do with prompts.

A load test that measures whoever happens to listen on the port writes one deployment's figures under the name of
another. So a server whose repository says that it is another deployment is refused, and a server that is not there is
noticed before the first request to any of them.

What a server's prefix cache holds when a request comes is part of the experiment. The arms of a comparison send the
same prompts, again and again. A server that keeps the KV cache of ended requests reads them only the first time, so the
arm that comes second looks faster, and a deployment beside the first, with a cache of its own, meets everything unread.
Hence every cell of a sweep begins in one of two states, the same in all arms:

*cold*: no request finds any part of its prompt. How that is reached depends on the server, and stands in the report:
 * ``off``: the server keeps nothing (`kv_cache_reuse: false`, `kv_cache.block_reuse: false`), so nothing is done.
 * ``salted``: each request has a `cache_salt` of its own. The embedded engine and TensorRT-LLM's LLM API (line A and B)
   share cache only among requests of the same salt, as vLLM's own server does by its field of this name. Prompts stay
   as they are, to the bit.
 * ``numbered``: the first message of each prompt begins with twelve digits of its own, ``[512907731846]``, for servers
   that take no salt, such as compiled TensorRT-LLM engines, whose C++ backend has no input for it. The prompts then
   differ in these digits between arms, and what the chat template puts before the first message is found by every
   request alike. If one server of a sweep needs it, all of them get it.
*warm*: each prompt of a cell has been read, whole and by the same arm, just before the cell (``read``), or before an
   earlier one of it and looked at again. What is found is what the server shares: whole blocks of the prompt, as far
   as the cache has room for all of them.

There are other ways to have a server forget: to start it anew, to load its model anew (Triton's model control, where
it was started with `--model-control-mode=explicit`), or `POST /reset_prefix_cache` of vLLM's own server in developer
mode. None works on every server while it serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from client import DrafthouseClient, ModelDescription
from client.errors import ClientError
from deployments.errors import DrafthouseError
from loadtest.settings import Arm, Deployment, Protocol, SweepSettings

CacheMode = Literal["cold", "warm"]
CacheState = Literal["off", "salted", "numbered", "read"]

CACHE_WORDS: Mapping[CacheState, str] = {
    "off": "cold: the server keeps no prompts",
    "salted": "cold: each request has a cache_salt of its own",
    "numbered": "cold: each prompt begins with a number of its own",
    "read": "warm: each prompt was read once just before its cell",
}
"""Each state as a report says it."""

_PREFIX = "drafthouse_"


class ServerError(DrafthouseError, RuntimeError):
    """Servers that cannot be measured; the message names each, and what would be right."""


class CacheError(DrafthouseError, ValueError):
    """The state that was asked for cannot be had; the message says why."""


class Server(BaseModel):
    """What answered for one arm, and the state of its prefix cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    host: str
    deployment: Deployment | None
    """Who it says it is; None if it does not say."""
    cache: CacheState
    salts: bool
    """Whether it takes a `cache_salt`."""


def look(settings: SweepSettings) -> list[Server]:
    """The servers of all arms.

    Raises:
        ServerError: one is not there, has not the model, or is another deployment than is expected.
        CacheError: the prefix cache cannot be brought into the state that was asked for.
    """
    hosts = {arm.host or settings.host: expected_of(settings, arm) for arm in settings.arms}
    found: dict[str, ModelDescription] = {}
    wrong: list[str] = []
    for host, expected in hosts.items():
        try:
            found[host] = describe(host, settings.protocol, settings.model)
            check(host, deployment_of(found[host]), expected)
        except (ServerError, ClientError) as error:
            arms = ", ".join(arm.name for arm in settings.arms if (arm.host or settings.host) == host)
            wrong.append(f"{arms}: {error}")
    if wrong:
        raise ServerError("; ".join(wrong))
    described = [found[arm.host or settings.host] for arm in settings.arms]
    salts = ["cache_salt" in each.inputs for each in described]
    keeps = {arm.name: _keeps_prompts(each) for arm, each in zip(settings.arms, described, strict=True)}
    reached = cache_states(settings.cache, keeps, salts)
    return [
        Server(
            arm=arm.name,
            host=arm.host or settings.host,
            deployment=deployment_of(each),
            cache=state,
            salts=salted,
        )
        for arm, each, state, salted in zip(settings.arms, described, reached, salts, strict=True)
    ]


def describe(host: str, protocol: Protocol, model: str) -> ModelDescription:
    """What a server says about the model that is to be measured; raises `ClientError`."""
    with DrafthouseClient(host, protocol=protocol, model=model) as client:
        return client.describe()


def expected_of(settings: SweepSettings, arm: Arm) -> Deployment | None:
    """Who has to answer for an arm."""
    return arm.deployment if arm.host else settings.deployment


def deployment_of(described: ModelDescription) -> Deployment | None:
    """Who a server says it is; None if its repository is not the kit's, or of an earlier version."""
    said = {name.removeprefix(_PREFIX): value for name, value in described.parameters.items()}
    if not {"deployment", "spec"} <= said.keys():
        return None
    return Deployment(name=said["deployment"], spec=said["spec"], weights=said.get("weights"))


def check(host: str, found: Deployment | None, expected: Deployment | None) -> None:
    """Refuse a server that says it is another deployment; one that says nothing passes.

    Raises:
        ServerError: says in what it differs, and what to do.
    """
    if found is None or expected is None:
        return
    if found.name != expected.name:
        raise ServerError(
            f"{host} serves the deployment {found.name}, not {expected.name}; stop it and serve {expected.name}, or "
            "give the ports of the right server in the spec's serving section"
        )
    if found.spec != expected.spec:
        raise ServerError(
            f"{host} serves {found.name} as another spec has it: target, engine or speculation have changed since it "
            f"was built (there {found.spec}, here {expected.spec}); stop it and serve the spec again"
        )
    if None not in (found.weights, expected.weights) and found.weights != expected.weights:
        raise ServerError(
            f"{host} serves {found.name} with other weights than are built here (there {found.weights}, here "
            f"{expected.weights}); stop it and serve the spec again"
        )


def silent(servers: Sequence[Server]) -> list[str]:
    """Hosts that do not say which deployment they serve."""
    return list(dict.fromkeys(server.host for server in servers if server.deployment is None))


def cache_states(
    mode: CacheMode, keeps: Mapping[str, bool | None], salts: Sequence[bool]
) -> list[CacheState]:
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


def _keeps_prompts(described: ModelDescription) -> bool | None:
    """Whether it reuses KV cache of earlier requests; None if it does not say."""
    said = described.parameters.get(f"{_PREFIX}prefix_cache")
    return None if said is None else said == "true"
