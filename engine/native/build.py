"""Compiles the kernel, beside the OpenVINO that it is linked to: `python -m engine.native.build`.

It takes seconds, and only a C++17 compiler; headers and libraries are those of OpenVINO's wheel. The file's name says
what it was made from, so a change of the sources or of OpenVINO is noticed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openvino

SOURCES = Path(__file__).parent
_OPENVINO = Path(openvino.__file__).parent
# -ffp-contract=off: what is fused is written down, and must be the same in every kernel.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=off")
_INSTRUCTIONS = {
    "kernel_avx512.cpp": (
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512vnni",
        "-mavx2",
        "-mfma",
        "-mf16c",
    ),
    "kernel_avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
}


class NativeBuildError(Exception):
    """The kernel could not be compiled."""


def library_path() -> Path:
    """Where the compiled kernel is, or would be."""
    digest = hashlib.sha256(f"{openvino.__version__} {_FLAGS} {_INSTRUCTIONS}".encode())
    for source in sorted([*SOURCES.glob("*.[chi]*pp"), *SOURCES.glob("*.inc")]):
        digest.update(source.name.encode() + source.read_bytes())
    return _OPENVINO.parent / "drafthouse_native" / f"libdrafthouse-{digest.hexdigest()[:16]}.so"


def compiler() -> str | None:
    """`$CXX`, g++ or clang++, whichever there is."""
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    return next((found for name in names if (found := shutil.which(name))), None)


def build(path: Path, extra: Sequence[str] = ()) -> None:
    """Compile to a path.

    Args:
        path: of the library.
        extra: more flags for compiler and linker.

    Raises:
        NativeBuildError: there is no compiler, or it fails.
    """
    program = compiler()
    if program is None:
        raise NativeBuildError("no C++ compiler: install g++ or clang++, or name one in CXX")
    path.parent.mkdir(parents=True, exist_ok=True)
    libraries = _OPENVINO / "libs"
    openvino_library = next(libraries.glob("libopenvino.so.*")).name
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as directory,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):

        def compile_source(source: Path) -> str:
            result = Path(directory) / f"{source.stem}.o"
            includes = (f"-I{SOURCES}", "-isystem", str(_OPENVINO / "include"), "-DOV_THREAD=0")
            flags = (*_FLAGS, *_INSTRUCTIONS.get(source.name, ()), *includes, *extra)
            _run([program, *flags, "-c", str(source), "-o", str(result)])
            return str(result)

        objects = list(pool.map(compile_source, sorted(SOURCES.glob("*.cpp"))))
        made = Path(directory) / path.name
        linked = (f"-L{libraries}", f"-l:{openvino_library}", "-l:libtbb.so.12", f"-Wl,-rpath,{libraries}")
        _run([program, "-shared", "-o", str(made), *objects, *linked, *extra])
        made.replace(path)
    for other in path.parent.glob("libdrafthouse-*.so"):
        if other != path:
            other.unlink()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NativeBuildError(f"{' '.join(command)}\n{done.stderr.strip()}")


def main() -> None:
    """Compile if it is not there; without a compiler say what serves instead."""
    path = library_path()
    if path.exists():
        return
    try:
        build(path)
    except (NativeBuildError, OSError) as error:
        print(f"The attention kernel was not compiled, OpenVINO's serves instead ({error})", file=sys.stderr)


if __name__ == "__main__":
    main()
