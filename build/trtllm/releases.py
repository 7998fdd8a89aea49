"""The two release lines of TensorRT-LLM, how to tell them apart, and what they call each other's keys.

Line A is 1.2.1: TensorRT engines (`trtllm-build`, C++ Triton backend) and the LLM API. Line B is 1.3.0rc21 and
newer: the LLM API only. The releases between them are neither: up to 1.3.0rc20 the keys were renamed one by one.
Sources: github.com/NVIDIA/TensorRT-LLM/releases/tag/v1.3.0rc20; pull requests #11158 (discriminated
`decoding_type`), #12905 (acceptance gate), #10860 and #12262 (`draft_len_schedule`), #15763, #15907 and #15918
(engines removed); llm_args.py of 1.2.1 and at 0004396; `schemas/` for the keys themselves.

Example::

    line_of_version("1.2.1").runtimes       # ("engines", "llm_api")
    line_of_version("1.4.0rc1").runtimes    # ("llm_api",)
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from build.trtllm.installed import installed_version
from deployments.findings import Finding, UnsupportedDeployment
from deployments.spec import SpecError

LineName = Literal["A", "B"]
Runtime = Literal["engines", "llm_api"]

PRINT_VERSION = "import importlib.metadata as m; print(m.version('tensorrt_llm'))"


def not_in_line(reason: str, remedy: str) -> Finding:
    """The line, the runtime or the method cannot do what the spec asks for; `remedy` comes nearest and works."""
    return Finding("not-in-this-line", "error", reason, remedy)


def went_with_engines(what: str) -> str:
    """Why line B has a method no more."""
    return f"{what} went with the TensorRT engines in 1.3.0rc21"


@dataclass(frozen=True)
class ReleaseLine:
    """What differs between the lines.

    Attributes:
        name: as in the spec, `engine.line`.
        releases: in words.
        pinned: release in the images below.
        triton_image: serves; has Triton, the Python backend and TensorRT-LLM.
        build_image: converts and compiles. Line A builds in the image that serves, because an engine loads only
            with the very release that built it.
        runtimes: what can run, the preferred first.
        schema: file in `schemas/` that the LLM API's YAML is checked with.
        schedule_bound: whether a key of `draft_len_schedule` is the smallest (lower) or the largest (upper) batch
            size of its bucket. The spec always gives the largest.
    """

    name: LineName
    releases: str
    pinned: str
    triton_image: str
    build_image: str
    runtimes: tuple[Runtime, ...]
    schema: str
    schedule_bound: Literal["lower", "upper"]


LINE_A = ReleaseLine(
    name="A",
    releases="1.2.1",
    pinned="1.2.1",
    triton_image="nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
    build_image="nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
    runtimes=("engines", "llm_api"),
    schema="1.2.1.json",
    schedule_bound="lower",
)

# No Triton image of NVIDIA's with a release of line B is known (26.07, the newest seen, has 1.2.1), so the
# kit's own is built from the release image and Triton's binaries: what NVIDIA's docker/Dockerfile.multi does.
LINE_B = ReleaseLine(
    name="B",
    releases="1.3.0rc21 and newer",
    pinned="1.4.0rc0",
    triton_image="drafthouse/tritonserver-trtllm:1.4.0rc0",
    build_image="nvcr.io/nvidia/tensorrt-llm/release:1.4.0rc0",
    runtimes=("llm_api",),
    schema="1.4.0rc0.json",
    schedule_bound="upper",
)

LINES: Mapping[LineName, ReleaseLine] = MappingProxyType({"A": LINE_A, "B": LINE_B})

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:rc(\d+))?(?:\.?(?:post|dev)\d+)?(?:\+\S+)?")


def release_and_candidate(version: str) -> tuple[tuple[int, int, int], int | None]:
    """The numbers of a version: its release, and its candidate; None: it is none.

    Raises:
        UnsupportedDeployment: it is no version of TensorRT-LLM.
    """
    match = _VERSION.fullmatch(version.strip())
    if match is None:
        raise _neither(f"{version!r} is no version of TensorRT-LLM", f"the image {LINE_A.triton_image}")
    major, minor, patch, candidate = match.groups()
    return (int(major), int(minor), int(patch)), None if candidate is None else int(candidate)


def line_of_version(version: str) -> ReleaseLine:
    """The release line that a version of TensorRT-LLM belongs to.

    Raises:
        UnsupportedDeployment: the version belongs to neither, with the reason.
    """
    release, candidate = release_and_candidate(version)
    if release[:2] == (1, 2) and release >= (1, 2, 1) and candidate is None:
        return LINE_A
    if release > (1, 3, 0) or (release == (1, 3, 0) and (candidate is None or candidate >= 21)):
        return LINE_B
    if release == (1, 3, 0):
        raise _neither(
            f"TensorRT-LLM {version} lies between the lines: keys of the LLM API were renamed one by one "
            "from 1.3.0rc0 to rc20, while the engines were still there",
            f"1.2.1 (the image {LINE_A.triton_image}) or {LINE_B.pinned}",
        )
    raise _neither(
        f"TensorRT-LLM {version} is older than line A; its keys and flags were not checked",
        f"1.2.1 (Triton images 26.05 to 26.07 have it, such as {LINE_A.triton_image})",
    )


def _neither(reason: str, remedy: str) -> UnsupportedDeployment:
    return UnsupportedDeployment(not_in_line(reason, remedy))


def version_command(image: str) -> tuple[str, ...]:
    """The command that prints the version of TensorRT-LLM in a container image."""
    return ("docker", "run", "--rm", "--entrypoint", "python3", image, "-c", PRINT_VERSION)


def version_in(image: str) -> str | None:
    """The version of TensorRT-LLM that an image's tag names (`release:1.3.0rc24`), or None."""
    match = re.search(r":(\d+\.\d+\.\d+(?:rc\d+)?)(?![\w.])", image)
    return match.group(1) if match else None


def detect_version(image: str) -> str:
    """The version of TensorRT-LLM that is installed here or, outside the containers, in the image.

    Raises:
        SpecError: Docker is missing, or the image cannot be run or has no TensorRT-LLM.
    """
    version = installed_version()
    if version is not None:
        return version
    if shutil.which("docker") is None:
        raise SpecError(
            "engine.line: auto asks the container for its TensorRT-LLM, which needs Docker; write line: A or line: B"
        )
    command = version_command(image)
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = answer.stdout.split()
    if answer.returncode != 0 or not lines:
        raise SpecError(
            f"engine.line: auto could not ask {image} for its TensorRT-LLM; "
            f"`{' '.join(command[:4])} …` said: {answer.stderr.strip()[-300:] or 'nothing'}"
        )
    return lines[-1]
