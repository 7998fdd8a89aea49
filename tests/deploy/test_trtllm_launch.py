"""Launch commands for TensorRT-LLM: their shape in every mode, and that the real `tritonserver` takes every option."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from build.trtllm.support.matrix import resolve
from build.trtllm.topology import python_path, topology_of
from deploy.place import Place, remove
from deploy.server import TritonError
from deploy.triton import TritonServer
from deploy.trtllm_launch import Launch, LaunchCommand, hosts_from, launch_command
from deploy.trtllm_server import TensorRtLlmServer, compose_command, tensorrt_llm_triton
from tests.build.trtllm.specs import deployment
from tests.end_to_end.calls import GrpcCaller, text_inputs, whole_text
from tests.model_repo.llmapi_server import OUTPUT, assemble_llm_api
from tests.ports import free_ports

BOTH = ("tensorrt_llm", "tensorrt_llm_draft")

# Starts what `mpirun` would: one process for each part between colons, and ends when the first one does.
MPIRUN = """#!{python}
import itertools, os, subprocess, sys
parts = [list(part) for colon, part in itertools.groupby(sys.argv[1:], ":".__eq__) if not colon]
started = []
for rank, part in enumerate(parts):
    command = part[part.index("-n") + 2:]
    environment = dict(os.environ, OMPI_COMM_WORLD_RANK=str(rank), OMPI_COMM_WORLD_SIZE=str(len(parts)))
    started.append(subprocess.Popen(command, env=environment))
try:
    sys.exit(started[0].wait())
finally:
    for process in started:
        process.terminate()
"""


def processes(command: LaunchCommand) -> list[list[str]]:
    """The arguments of each rank's process, `mpirun`'s own left out."""
    found: list[list[str]] = [[]]
    for argument in command.arguments:
        if argument == ":":
            found.append([])
        else:
            found[-1].append(argument)
    return [part[part.index("tritonserver") :] for part in found]


def test_one_gpu_needs_no_mpi() -> None:
    command = launch_command(Launch(Path("/srv/repository"), http_port=9000))
    assert command.arguments[:2] == ("tritonserver", "--model-repository=/srv/repository")
    assert "--http-port=9000" in command.arguments
    assert not command.environment


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_in_leader_mode_only_rank_0_serves(ranks: int) -> None:
    command = launch_command(Launch(Path("repository"), mode="leader", ranks=ranks, engines=BOTH))
    assert command.arguments[:4] == ("mpirun", "--allow-run-as-root", "-n", "1")
    first, *others = processes(command)
    assert len(others) == ranks - 1
    assert not any(argument.startswith(("--allow-", "--load-model")) for argument in first)
    prefixes = set()
    for process in (first, *others):
        assert "--disable-auto-complete-config" in process
        prefixes |= {argument for argument in process if "shm-region-prefix-name" in argument}
    assert len(prefixes) == ranks, "ranks of one host must not share memory by name"
    for process in others:
        assert {"--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"} <= set(process)
        loaded = [argument for argument in process if argument.startswith("--load-model=")]
        assert loaded == [f"--load-model={name}" for name in BOTH]
        assert not any("-port=" in argument for argument in process)


def test_the_orchestrator_has_a_rank_of_its_own() -> None:
    launch = Launch(Path("repository"), mode="orchestrator", ranks=4, engines=BOTH)
    command = launch_command(launch)
    assert command.environment == {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "0"}
    assert len(processes(command)) == 4
    assert command.shell().startswith("TRTLLM_ORCHESTRATOR=1 TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=0 mpirun ")


def test_ranks_fill_one_host_after_the_other() -> None:
    hosts = ("gpu-a", "gpu-b")
    launch = Launch(Path("repository"), mode="multi_node", ranks=4, hosts=hosts, remote_shell="kubessh")
    arguments = launch_command(launch).arguments
    places = [arguments[index + 1] for index, item in enumerate(arguments) if item == "--host"]
    assert places == ["gpu-a:2", "gpu-a:2", "gpu-b:2", "gpu-b:2"]
    assert ("--mca", "plm_rsh_agent", "kubessh") == arguments[2:5]
    assert "LD_LIBRARY_PATH" in arguments
    command = launch_command(Launch(Path("r"), mode="multi_node", ranks=4, hosts=hosts, engines=()))
    text = command.shell()
    assert "--host gpu-a:2,gpu-b:2 -n 4 trtllm-llmapi-launch tritonserver" in text
    assert "--disable-auto-complete-config" not in text, "the llmapi model completes its configuration"


def test_workers_on_other_hosts_find_the_drafter() -> None:
    """And nobody's packages are hidden by the kit's: its drafter comes last, and only where it is used."""
    nodes = {"launch": {"mode": "multi_node", "hosts": ["a", "b"]}, "tensor_parallel": 4}
    for method, inherited, expected in (
        ("anpd", "/site", f"/site:{Path.cwd()}/runs/model_repo/example/tensorrt_llm/1"),
        ("anpd", "", f"{Path.cwd()}/runs/model_repo/example/tensorrt_llm/1"),
        ("mtp", "/site", "/site"),
        ("mtp", "", ""),
    ):
        resolved = resolve(deployment(method, "A", "llm_api", **nodes))
        path = python_path(resolved, inherited)
        assert path == expected
        launch = Launch(Path("r"), mode="multi_node", ranks=4, hosts=("a", "b"), engines=(), python_path=path)
        command = launch_command(launch)
        assert command.environment == ({"PYTHONPATH": path} if path else {})
        forwarded = [
            command.arguments[index + 1] for index, item in enumerate(command.arguments) if item == "-x"
        ]
        assert ("PYTHONPATH" in forwarded) == bool(path)


def test_a_shell_reads_the_command_back() -> None:
    command = launch_command(Launch(Path("/srv/my models"), mode="leader", ranks=2))
    assert tuple(shlex.split(command.shell())) == command.arguments


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ranks": 2}, "leader"),
        ({"mode": "orchestrator", "ranks": 1}, "2 or more"),
        ({"mode": "multi_node", "ranks": 2}, "hosts"),
        ({"mode": "leader", "ranks": 2, "hosts": ("a", "b")}, "hosts"),
        ({"mode": "multi_node", "ranks": 3, "hosts": ("a", "b")}, "evenly"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Launch(Path("repository"), **changes)  # type: ignore[arg-type]


def test_the_nodes_of_a_job() -> None:
    pods = {"LWS_LEADER_ADDRESS": "llama-0.llama.models", "LWS_GROUP_SIZE": "3"}
    assert hosts_from(pods) == ("llama-0.llama.models", "llama-0-1.llama.models", "llama-0-2.llama.models")
    slurm = {"SLURM_JOB_NODELIST": "gpu[08-10,12],login1,a[1-2]-ib"}
    assert hosts_from(slurm) == ("gpu08", "gpu09", "gpu10", "gpu12", "login1", "a1-ib", "a2-ib")
    assert hosts_from({}) == ()
    with pytest.raises(ValueError, match="SLURM_JOB_NODELIST"):
        hosts_from({"SLURM_JOB_NODELIST": "gpu[a-b]"})


def test_topologies_follow_the_deployment() -> None:
    def of(method: str = "none", runtime: str = "engines", **engine: object) -> tuple[object, ...]:
        topology = topology_of(resolve(deployment(method, "A", runtime, **engine)))
        launch_command(
            Launch(Path("r"), topology.mode, topology.ranks, topology.engines, topology.hosts)
        )  # it is one that can be launched
        return topology.mode, topology.ranks, topology.engines

    assert of() == ("single", 1, BOTH[:1])
    assert of(tensor_parallel=2, pipeline_parallel=2) == ("leader", 4, BOTH[:1])
    assert of("draft_model", tensor_parallel=2) == ("leader", 2, BOTH)
    orchestrated = {"launch": {"mode": "orchestrator"}, "draft": {"tensor_parallel": 1}}
    assert of("draft_model", tensor_parallel=2, **orchestrated) == ("orchestrator", 4, BOTH)
    assert of(runtime="llm_api", tensor_parallel=4) == ("single", 1, ())
    nodes = {"launch": {"mode": "multi_node", "hosts": ["a", "b"]}, "tensor_parallel": 4}
    assert of(runtime="llm_api", **nodes) == ("multi_node", 4, ())
    assert of(**nodes) == ("multi_node", 4, BOTH[:1])


def test_compose_serves_the_spec_on_its_line() -> None:
    command = compose_command(Path("deployments/x.yaml"), "line-a")
    settings = command.arguments[command.arguments.index("--env-file") + 1]
    assert (Path(__file__).parents[2] / settings).is_file()
    assert command.shell().startswith("DRAFTHOUSE_SPEC=deployments/x.yaml docker compose ")


def test_a_server_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tensorrt_llm_triton() in (None, "/opt/tritonserver/bin/tritonserver")
    http, grpc, metrics = free_ports(3)
    launch = Launch(
        tmp_path, program="nonesuch", host="127.0.0.1", http_port=http, grpc_port=grpc, metrics_port=metrics
    )
    with pytest.raises(TritonError, match="nonesuch is not installed"):
        TensorRtLlmServer(launch).start()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `tritonserver`, the real one with its Python backend, and an `mpirun`; it is on the PATH."""
    folder = tmp_path_factory.mktemp("bin")
    site = Path(str(distribution("nvidia-pytriton").locate_file("")))
    usual = TritonServer(folder, http_port=1, grpc_port=2, metrics_port=3)
    place = Place.take()
    command, environment = usual._command(place)
    backends = command[command.index("--backend-directory") + 1]
    variables = " ".join(
        f"{name}={shlex.quote(environment[name])}" for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
    )
    server = site / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    scripts = {
        "tritonserver": f'#!/bin/sh\n{variables} exec {server} --backend-directory={backends} "$@"\n',
        "mpirun": MPIRUN.format(python=sys.executable),
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}:{before}"
    yield folder
    os.environ["PATH"] = before
    remove(place.name)
    place.give_up()


@pytest.mark.triton
@pytest.mark.parametrize("mode", ["single", "leader"])
def test_a_real_server_takes_every_option(tmp_path: Path, installed: Path, mode: str) -> None:
    """The LLM API's command in mode single; in mode leader two ranks, as if the stand-in were an engine."""
    repository, _ = assemble_llm_api(tmp_path, {"method": "none"})
    http, grpc, metrics = free_ports(3)
    launch = Launch(
        repository,
        mode=mode,  # type: ignore[arg-type]
        ranks=1 if mode == "single" else 2,
        engines=() if mode == "single" else ("tensorrt_llm",),
        host="127.0.0.1",
        http_port=http,
        grpc_port=grpc,
        metrics_port=metrics,
    )
    log = tmp_path / "triton.log"
    with TensorRtLlmServer(launch, log=log) as server:
        server.wait_until_ready(60)
        with GrpcCaller(f"127.0.0.1:{grpc}") as caller:
            answers = caller.infer("ensemble", text_inputs("Once", max_tokens=5, stream=True))
    assert whole_text(answers) and OUTPUT.startswith(whole_text(answers))
    text = log.read_text(encoding="utf-8")
    assert text.count("Started HTTPService") == 1, "one rank serves"
    assert text.count("successfully loaded 'tensorrt_llm'") == launch.ranks
    assert "unrecognized" not in text.lower()
