"""The shell steps of the container files, run on trees that stand in for NVIDIA's images."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from build.trtllm.installed import LLM_ARGUMENTS, installed_release, installed_version
from tests.deploy.tools import DEPLOY, ROOT

STEPS = DEPLOY / "container" / "steps"
CONTAINERFILES = {
    path.name: path.read_text(encoding="utf-8") for path in (DEPLOY / "container").glob("Dockerfile.*")
}
# pip, as far as the steps call it: remembers what it was asked for, and installs a module into the environment named.
PIP = """
import pathlib, sys
lock = pathlib.Path(sys.argv[-1]).read_text()
python = pathlib.Path(sys.argv[sys.argv.index("--python") + 1])
(site,) = python.parents[1].glob("lib/python3*/site-packages")
(site / "shared.py").write_text("OWNER = 'kit'")
(site / "asked.txt").write_text(lock)
"""
LLM_ARGS = """
class DecodingBaseConfig(StrictBaseModel):
    acceptance_window: Optional[int] = None
    acceptance_length_threshold: Optional[float] = Field(default=None)
    _hidden = PrivateAttr(True)
"""


def run(step: str, *arguments: object, path: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(STEPS / step), *map(str, arguments)]
    environment = {"PATH": f"{path}:/usr/bin:/bin", **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def nvidia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with TensorRT-LLM in it, first on PATH, as in the Triton image of line A."""
    root = tmp_path_factory.mktemp("nvidia") / "venv-tritonserver"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    (site,) = root.glob("lib/python3*/site-packages")
    for name, version in (("tensorrt_llm", "1.3.0rc28"), ("torch", "2.10.0")):
        about = site / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (site / "tensorrt_llm" / "llmapi").mkdir(parents=True)
    (site / "tensorrt_llm" / "llmapi" / "llm_args.py").write_text(LLM_ARGS)
    (site / "shared.py").write_text("OWNER = 'nvidia'")
    (site / "torch.py").write_text("")
    (root / "more").mkdir()
    (root / "more" / "beside.py").write_text("")
    (site / "more.pth").write_text(str(root / "more"))
    (site / "pip").mkdir()
    (site / "pip" / "__main__.py").write_text(PIP)
    return root


@pytest.fixture(scope="module")
def kit(nvidia: Path) -> Path:
    """The environment that the step makes, and nothing of NVIDIA's changed."""
    before = sorted(path for path in nvidia.rglob("*") if "__pycache__" not in path.parts)
    lock = nvidia.parent / "run.lock"
    lock.write_text("numpy==1.26.4\nnvidia-pytriton==0.7.0\npydantic==2.12.0\n")
    made = nvidia.parent / "kit"
    answer = run("environment.sh", made, lock, path=str(nvidia / "bin"))
    assert answer.returncode == 0, answer.stderr
    assert sorted(path for path in nvidia.rglob("*") if "__pycache__" not in path.parts) == before
    return made


def python(environment: Path, code: str) -> str:
    command = [str(environment / "bin" / "python"), "-c", code]
    answer = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    return answer.stdout.strip()


def test_the_kit_s_environment_sees_nvidia_s_packages(kit: Path) -> None:
    code = "import importlib.metadata as m, torch, beside; print(m.version('tensorrt_llm'))"
    assert python(kit, code) == "1.3.0rc28"
    assert python(kit, "import shared; print(shared.OWNER)") == "kit", "its own come first"
    (asked,) = kit.glob("lib/python3*/site-packages/asked.txt")
    assert asked.read_text().split() == ["numpy==1.26.4", "pydantic==2.12.0"]


def test_so_the_kit_knows_where_it_is(kit: Path) -> None:
    code = "from build.trtllm.installed import installed_version; print(installed_version())"
    assert python(kit, code) == "1.3.0rc28"


def test_elsewhere_the_python_on_path_is_asked(nvidia: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(nvidia / "bin"))
    release = installed_release()
    assert release is not None and release.version == "1.3.0rc28" == installed_version()
    assert release.fields(LLM_ARGUMENTS, "DecodingBaseConfig") == {
        "acceptance_window",
        "acceptance_length_threshold",
    }
    assert release.fields(LLM_ARGUMENTS, "NoSuchConfig") == frozenset()
    monkeypatch.setenv("PATH", "")
    assert installed_release() is None


def test_triton_s_libraries_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "apt-get").chmod(0o755)
    answer = run("triton_libraries.sh", path=str(tmp_path), CUDA_VERSION="13.1.0")
    assert answer.returncode == 0, answer.stderr
    update, install = (tmp_path / "asked").read_text().splitlines()
    assert update == "update"
    wanted = {"archive", "b64", "curl4", "numa", "re2", "xml2"}
    assert all(any(f"lib{name}" in package for package in install.split()) for name in wanted)
    assert "datacenter-gpu-manager-4-cuda13" in install.split()


@pytest.fixture
def triton(tmp_path: Path) -> Path:
    """Server and Python backend of the real Triton in the wheel, laid out as in NVIDIA's images."""
    bundle = Path(str(distribution("nvidia-pytriton").locate_file(""))) / "pytriton" / "tritonserver"
    root = tmp_path / "tritonserver"
    shutil.copytree(bundle / "bin", root / "bin")
    shutil.copytree(bundle / "backends", root / "backends")
    (root / "lib").mkdir()
    return root


def libraries() -> str:
    return str(Path(str(distribution("nvidia-pytriton").locate_file(""))) / "nvidia_pytriton.libs")


def test_a_server_with_all_its_libraries_passes(triton: Path) -> None:
    answer = run("check_libraries.sh", triton, path="/bin", LD_LIBRARY_PATH=libraries())
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("part", ["bin/tritonserver", "backends/python/libtriton_python.so"])
def test_a_library_that_is_missing_anywhere_ends_the_build(triton: Path, part: str) -> None:
    """As in the image of line B before: the server alone may find everything."""
    path = triton / part
    content = path.read_bytes()
    assert b"libc.so.6\0" in content
    path.write_bytes(content.replace(b"libc.so.6\0", b"libc.so.X\0"))
    answer = run("check_libraries.sh", triton, path="/bin", LD_LIBRARY_PATH=libraries())
    assert answer.returncode == 1
    assert f"{path}: libc.so.X => not found" in answer.stderr


def test_a_part_that_was_not_copied_ends_it_too(triton: Path) -> None:
    shutil.rmtree(triton / "backends")
    answer = run("check_libraries.sh", triton, path="/bin")
    assert answer.returncode == 1 and "backends/python is missing" in answer.stderr


def test_the_driver_s_libraries_come_later(triton: Path, tmp_path: Path) -> None:
    fake = tmp_path / "programs"
    fake.mkdir()
    told = "\\tlibcuda.so.1 => not found\\n\\tlibnvidia-ml.so.1 => not found\\n"
    (fake / "ldd").write_text(f'#!/bin/sh\nprintf "{told}"\n')
    (fake / "ldd").chmod(0o755)
    assert run("check_libraries.sh", triton, path=str(fake)).returncode == 0


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_the_kit_is_beside_nvidias_packages(name: str) -> None:
    text = CONTAINERFILES[name]
    assert "RUN deploy/container/steps/environment.sh /opt/kit requirements/run.lock\n" in text
    assert "PYTHONPATH" not in "".join(re.findall(r"^ENV (?:.*\\\n)*.*$", text, re.MULTILINE)), (
        "the kit would hide NVIDIA's packages"
    )


def test_the_containerfiles_run_these_steps() -> None:
    used = set(
        re.findall(r"^RUN deploy/container/steps/(\S+)", "\n".join(CONTAINERFILES.values()), re.MULTILINE)
    )
    assert used == {path.name for path in STEPS.iterdir()}
    assert all(os.access(path, os.X_OK) for path in STEPS.iterdir())
