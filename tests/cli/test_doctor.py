"""`drafthouse doctor` with programs that are there, fail, or are missing, and its verdicts."""

import importlib.util
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import machine
from cli.main import app
from deploy import triton
from tests.build.vllm.installation import install as install_vllm
from tests.build.vllm.installation import interpreter

JOURNEYS = ("demo", "your model on this CPU", "train a speculator", "TensorRT-LLM, build and serve")


def install(folder: Path, **programs: str) -> None:
    for name, lines in programs.items():
        program = folder / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def doctor() -> str:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    return result.stdout


def verdict(told: str, journey: str) -> tuple[str, str]:
    """ "yes" or "no", and the lines below."""
    lines = told.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{journey}: "))
    below = []
    for line in lines[start + 1 :]:
        if not line.startswith("    "):
            break
        below.append(line.strip())
    return lines[start].removeprefix(f"{journey}: ").split(",")[0], " ".join(below)


def test_gpus_and_compose_are_told(programs: Path) -> None:
    install(programs, nvidia_smi="echo 'GPU one, 80 GB'; echo 'GPU two, 80 GB'", docker="exit 1")
    told = doctor()
    assert "GPU one, 80 GB" in told and "GPU two, 80 GB" in told
    (make,) = [line for line in told.splitlines() if " make " in line and "│" in line]
    assert "not found" in make
    (installed,) = [line for line in told.splitlines() if " tensorrt-llm " in line]
    assert "not installed" in installed
    assert verdict(told, "TensorRT-LLM, build and serve") == (
        "no",
        "neither TensorRT-LLM nor Docker Compose is here: run inside NVIDIA's container, or install Docker",
    )


def row(told: str, part: str) -> str:
    """What is found of a part, its lines joined."""
    lines = [[cell.strip() for cell in line.split("│")[1:3]] for line in told.splitlines() if "│" in line]
    start = [name for name, _ in lines].index(part)
    ends = (number for number, (name, _) in enumerate(lines) if number > start and name)
    return "".join(text for _, text in lines[start : next(ends, len(lines))])


def test_a_vllm_is_told_with_its_place_what_it_drafts_with_and_its_plugins(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its real interpreter says so; the files are those of a release."""
    install_vllm(interpreter(tmp_path / "v"), version="0.24.0+092c4842.nv26.7")
    monkeypatch.setenv("PATH", f"{tmp_path / 'v' / 'bin'}:{programs}")
    told = doctor()
    assert row(told, "vllm").replace(" ", "").startswith(f"0.24.0+092c4842.nv26.7in{tmp_path}")
    methods, _, without = row(told, "vllm's methods").partition(";")
    assert "eagle3" in methods and "prompt_lookup" in methods
    assert "anpd" in without and "anpd" not in methods, "this one has no custom_class"
    assert row(told, "vllm's plugins") == "drafthouse, with a repository"
    assert verdict(told, "vLLM") == ("yes", "drafthouse serve deployments/smollm2-eagle3-vllm.yaml")


def test_without_vllm_serve_installs_it_or_starts_its_container(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAFTHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "_VLLM_GIB", 0.0)
    told = doctor()
    assert row(told, "vllm") == "not installed" and verdict(told, "vLLM")[0] == "yes"
    monkeypatch.setattr(machine, "_VLLM_GIB", 1e6)
    answer, why = verdict(doctor(), "vLLM")
    assert answer == "no" and "GiB of disk are free" in why
    install(programs, nvidia_smi="echo 'GPU one, 80 GB'")
    assert verdict(doctor(), "vLLM") == (
        "no",
        "neither vLLM nor Docker Compose is here: run inside NVIDIA's container, or install Docker",
    )
    install(programs, docker="echo Docker Compose version v2.40")
    machine._said.cache_clear()
    assert verdict(doctor(), "vLLM")[0] == "yes"


def test_each_program_is_asked_once(programs: Path) -> None:
    noting = f'echo "$*" >> {programs}/$(/usr/bin/basename $0).log; echo something'
    install(programs, nvidia_smi=noting, docker=noting)
    doctor()
    for name in ("nvidia-smi", "docker"):
        assert len((programs / f"{name}.log").read_text().splitlines()) == 1, name


def test_a_machine_with_gpu_and_compose_builds_for_tensorrt_llm(programs: Path) -> None:
    install(programs, nvidia_smi="echo 'GPU one, 80 GB'", docker="echo Docker Compose version v2.40")
    told = doctor()
    assert verdict(told, "TensorRT-LLM, build and serve")[0] == "yes"
    assert verdict(told, "Docker Compose, monitoring") == ("yes", "mkdir -p models runs; docker compose up")


def test_a_laptop_serves_and_plans_and_says_why_it_does_not_do_the_rest(programs: Path) -> None:
    told = doctor()
    assert verdict(told, "your model on this CPU")[0] == "yes"
    assert verdict(told, "TensorRT-LLM, plan alone")[0] == "yes"
    answer, why = verdict(told, "TensorRT-LLM, build and serve")
    assert answer == "no" and "no NVIDIA GPU" in why and "Docker" in why


def test_a_python_without_its_library_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "python_library", lambda: None)
    told = doctor()
    for journey in JOURNEYS[:3]:
        answer, why = verdict(told, journey)
        assert answer == "no" and "libpython3" in why and "--enable-shared" in why


def test_a_taken_port_is_in_the_way_of_the_demo_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        monkeypatch.setattr(machine, "_DEMO_PORTS", (port,))
        told = doctor()
    assert verdict(told, "demo")[0] == "no" and f"port {port}" in verdict(told, "demo")[1]
    assert verdict(told, "your model on this CPU")[0] == "yes"


def test_without_pytorch_nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else found(name))
    answer, why = verdict(doctor(), "train a speculator")
    assert answer == "no" and "not installed: torch" in why and "make setup-dev" in why
