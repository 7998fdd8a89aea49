"""Release lines: which version belongs to which, and what is asked of a container."""

import subprocess
import sys
from pathlib import Path

import pytest

from build.trtllm import releases
from build.trtllm.releases import LINE_A, LINE_B, detect_version, line_of_version, version_command
from build.trtllm.support.matrix import resolve
from deployments.findings import UnsupportedDeployment
from deployments.spec import SpecError
from tests.build.trtllm.specs import deployment


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("1.2.1", LINE_A),
        ("1.2.1+cu130", LINE_A),
        ("1.2.1.post1", LINE_A),
        ("1.3.0rc21", LINE_B),
        ("1.3.0rc29", LINE_B),
        ("1.3.0", LINE_B),
        ("1.4.0rc1", LINE_B),
        ("2.0.0", LINE_B),
    ],
)
def test_versions_of_the_lines(version, line):
    assert line_of_version(version) is line


@pytest.mark.parametrize(
    "version", ["1.3.0rc0", "1.3.0rc20", "1.2.0", "1.2.1rc1", "1.2.0rc6", "1.1.0", "0.20.0"]
)
def test_versions_between_and_before_the_lines_are_refused(version):
    with pytest.raises(UnsupportedDeployment) as refusal:
        line_of_version(version)
    (finding,) = refusal.value.findings
    assert version in finding.reason
    assert "1.2.1" in finding.remedy


def test_pinned_releases_belong_to_their_lines():
    for line in (LINE_A, LINE_B):
        assert line_of_version(line.pinned) is line


def test_the_container_is_asked_with_a_command_that_prints_the_version():
    command = version_command("some/image:tag")
    assert command[:3] == ("docker", "run", "--rm")
    assert command[-3] == "some/image:tag"
    printed = subprocess.run(
        [sys.executable, "-c", command[-1].replace("tensorrt_llm", "pydantic")], capture_output=True
    )
    assert printed.returncode == 0
    assert printed.stdout.strip()


def _docker(directory: Path, script: str) -> str:
    program = directory / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    return f"{directory}:/usr/bin:/bin"


def test_auto_takes_the_version_that_the_container_prints(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", _docker(tmp_path, 'echo "banner of the image"; echo 1.4.0rc1'))
    resolved = resolve(deployment("suffix_automaton", line="auto", images={"triton": "my/image"}))
    assert resolved.line is LINE_B
    assert resolved.triton_image == "my/image"


def test_a_container_without_tensorrt_llm_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", _docker(tmp_path, 'echo "No package metadata was found" >&2; exit 1'))
    with pytest.raises(SpecError, match=r"my/image.*No package metadata"):
        detect_version("my/image")


def test_auto_without_docker_says_what_to_write(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpecError, match="line: A or line: B"):
        detect_version(releases.LINE_A.triton_image)
