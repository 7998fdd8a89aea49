"""Asks the servers of a sweep, before anything is sent, who they are and what they do with prompts.

A load test that measures whoever happens to listen on the port writes one deployment's figures under the name of
another. So a server whose repository says that it is another deployment is refused, and a server that is not there is
noticed before the first request to any of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from client import DrafthouseClient, ModelDescription
from client.errors import ClientError
from deployments.errors import DrafthouseError
from loadtest.cache import State, states
from loadtest.settings import Arm, Deployment, Protocol, SweepSettings

_PREFIX = "drafthouse_"


class ServerError(DrafthouseError, RuntimeError):
    """Servers that cannot be measured; the message names each, and what would be right."""


class Server(BaseModel):
    """What answered for one arm, and the state of its prefix cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    host: str
    deployment: Deployment | None
    """Who it says it is; None if it does not say."""
    cache: State
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
    reached = states(settings.cache, keeps, salts)
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


def _keeps_prompts(described: ModelDescription) -> bool | None:
    """Whether it reuses KV cache of earlier requests; None if it does not say."""
    said = described.parameters.get(f"{_PREFIX}prefix_cache")
    return None if said is None else said == "true"
