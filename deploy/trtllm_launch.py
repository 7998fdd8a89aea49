"""Commands that start `tritonserver` on a TensorRT-LLM repository: one GPU, several (MPI), several nodes.

 - *single*: one process.
 - *leader*: one process a rank. Rank 0 has all models and serves; the others have the engines alone and wait in
   their loading for work, so they have no ports.
 - *orchestrator*: rank 0 holds no engine, and each engine has ranks of its own (`participant_ids` in its config.pbtxt),
   started with the server instead of by it. Draft logits go from engine to engine ("fast logits") only so.
 - *multi_node*: leader over several hosts, started from the first one by `mpirun`.

The LLM API starts its workers itself, on several nodes through `trtllm-llmapi-launch`, which runs the server on rank 0.

Options are those of NVIDIA's launchers: TensorRT-LLM triton_backend/scripts/launch_triton_server.py at 0a2e2c1f, and
server.py of the tutorials' EKS_Multinode_Triton_TRTLLM at 2a209229.

Example::

    launch = Launch(Path("runs/model_repo"), mode="leader", ranks=2, engines=("tensorrt_llm",))
    print(launch_command(launch).shell())
"""

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from deploy.access import closed_endpoints

Mode = Literal["single", "leader", "orchestrator", "multi_node"]

_MPIRUN = ("mpirun", "--allow-run-as-root")
_LWS_LEADER = "LWS_LEADER_ADDRESS"
_LWS_SIZE = "LWS_GROUP_SIZE"
_SLURM_NODES = "SLURM_JOB_NODELIST"
# What processes on other hosts need from this one's environment, beside the launch's own variables.
_FORWARDED = ("PATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class LaunchCommand:
    """Program and arguments, and the variables that it needs beside those of the caller."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def shell(self) -> str:
        """The command as one line that can be pasted into a shell, variables in front."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])


@dataclass(frozen=True)
class Launch:
    """What is to be started.

    Attributes:
        repository: the model repository, as the server sees it.
        mode: see above.
        ranks: processes in all: tensor times pipeline parallelism; with the orchestrator those of all engines and 1.
        engines: models on the C++ backend, which every rank loads; empty with the LLM API.
        hosts: one host a node, the leader first; only `multi_node` has them.
        remote_shell: program that `mpirun` starts processes on other hosts with; None: ssh.
        python_path: PYTHONPATH for the LLM API's workers on other hosts, which find the module of a drafter that is a
            Python object there; empty: none.
        http_port, grpc_port, metrics_port, host: where rank 0 listens.
        program: the server.
        region_prefix: what names of shared memory regions begin with.
        stop_seconds: how long what runs when the server is stopped may go on.
        access: options that say which endpoints are closed.

    Raises:
        ValueError: the fields contradict each other; says what would be right.
    """

    repository: Path
    mode: Mode = "single"
    ranks: int = 1
    engines: tuple[str, ...] = ("tensorrt_llm",)
    hosts: tuple[str, ...] = ()
    remote_shell: str | None = None
    python_path: str = ""
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    host: str = "0.0.0.0"
    program: str = "tritonserver"
    region_prefix: str = "drafthouse_"
    stop_seconds: float = 30.0
    access: tuple[str, ...] = field(default_factory=closed_endpoints)

    def __post_init__(self) -> None:
        if self.mode == "single" and self.engines and self.ranks != 1:
            raise ValueError(
                f"{self.ranks} ranks need mode leader (one engine over them) or orchestrator, not single"
            )
        if self.mode == "orchestrator" and (self.ranks < 2 or not self.engines):
            raise ValueError(
                "mode orchestrator needs a rank for itself and one for each engine, so 2 or more"
            )
        if (self.mode == "multi_node") != bool(self.hosts):
            raise ValueError("hosts belong to mode multi_node, and to it alone; the leader is the first")
        if self.hosts and self.ranks % len(self.hosts):
            raise ValueError(
                f"{self.ranks} ranks do not spread evenly over {len(self.hosts)} hosts; every node runs as many"
            )


def launch_command(launch: Launch) -> LaunchCommand:
    """The command that starts everything; it ends when rank 0 does."""
    if not launch.engines:
        return _llm_api(launch)
    if launch.mode == "single":
        return LaunchCommand(_server(launch, 0))
    environment = {}
    if launch.mode == "orchestrator":
        environment = {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "0"}
    arguments = [*_MPIRUN, *_over_hosts(launch, environment)]
    for rank in range(launch.ranks):
        arguments += [":"] * bool(rank) + _placed(launch, rank) + ["-n", "1", *_server(launch, rank)]
    return LaunchCommand(tuple(arguments), MappingProxyType(environment))


def hosts_from(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The nodes of this job, the leader first: of a LeaderWorkerSet, of SLURM, or none.

    A LeaderWorkerSet names its pods GROUP and GROUP-1, GROUP-2, ... within one domain.

    Raises:
        ValueError: the variables are there but cannot be read.
    """
    if _LWS_LEADER in environment:
        leader = environment[_LWS_LEADER]
        name, dot, domain = leader.partition(".")
        size = int(environment.get(_LWS_SIZE, "1"))
        return (leader, *(f"{name}-{index}{dot}{domain}" for index in range(1, size)))
    return _slurm_hosts(environment.get(_SLURM_NODES, ""))


def _server(launch: Launch, rank: int) -> tuple[str, ...]:
    arguments = (
        launch.program,
        f"--model-repository={launch.repository}",
        "--disable-auto-complete-config",
        *_lifetime(launch, rank),
    )
    return arguments + (_ports(launch) if rank == 0 else _waiting(launch))


def _lifetime(launch: Launch, rank: int) -> tuple[str, ...]:
    return (
        # Ranks of one host would otherwise take each other's shared memory for their own.
        f"--backend-config=python,shm-region-prefix-name={launch.region_prefix}{rank}_",
        f"--exit-timeout-secs={math.ceil(launch.stop_seconds)}",
    )


def _ports(launch: Launch) -> tuple[str, ...]:
    return (
        *(f"--http-address={launch.host}", f"--http-port={launch.http_port}"),
        *(f"--grpc-address={launch.host}", f"--grpc-port={launch.grpc_port}"),
        *(f"--metrics-address={launch.host}", f"--metrics-port={launch.metrics_port}"),
        *launch.access,
    )


def _waiting(launch: Launch) -> tuple[str, ...]:
    """A rank that works for rank 0: its engines, and no ports."""
    return (
        *("--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"),
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in launch.engines),
    )


def _over_hosts(launch: Launch, environment: Mapping[str, str]) -> list[str]:
    if not launch.hosts:
        return []
    shell = ["--mca", "plm_rsh_agent", launch.remote_shell] if launch.remote_shell else []
    return shell + [part for name in (*_FORWARDED, *environment) for part in ("-x", name)]


def _placed(launch: Launch, rank: int) -> list[str]:
    """Where a rank runs: ranks fill one host after the other."""
    if not launch.hosts:
        return []
    per_host = launch.ranks // len(launch.hosts)
    return ["--host", f"{launch.hosts[rank // per_host]}:{per_host}"]


def _llm_api(launch: Launch) -> LaunchCommand:
    """The server with the kit's `llmapi` model, whose YAML completes its configuration."""
    server = (
        launch.program,
        f"--model-repository={launch.repository}",
        *_lifetime(launch, 0),
        *_ports(launch),
    )
    if launch.mode != "multi_node":
        return LaunchCommand(server)
    per_host = launch.ranks // len(launch.hosts)
    places = ",".join(f"{host}:{per_host}" for host in launch.hosts)
    environment = {"PYTHONPATH": launch.python_path} if launch.python_path else {}
    return LaunchCommand(
        (
            *(*_MPIRUN, *_over_hosts(launch, environment)),
            *("--host", places, "-n", str(launch.ranks), "trtllm-llmapi-launch", *server),
        ),
        MappingProxyType(environment),
    )


def _slurm_hosts(nodes: str) -> tuple[str, ...]:
    """Expand SLURM's list of nodes: `gpu[01-03,7],login` is gpu01, gpu02, gpu03, gpu7, login."""
    hosts: list[str] = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?[^,\[]*", nodes):
        match = re.fullmatch(r"([^\[]*)\[([\d,-]+)\](.*)", part)
        if match is None:
            if "[" in part or "]" in part:
                raise ValueError(f"{_SLURM_NODES} is {nodes!r}; {part!r} cannot be read as a list of nodes")
            hosts.append(part)
            continue
        before, numbers, after = match.groups()
        for span in numbers.split(","):
            first, _, last = span.partition("-")
            numbered = range(int(first), int(last or first) + 1)
            hosts += [f"{before}{number:0{len(first)}d}{after}" for number in numbered]
    return tuple(hosts)
