"""The kernel's library: compiled for this machine, under sanitizers, or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.native.build import NativeBuildError, build, compiler, library_path

ROOT = Path(__file__).parents[3]
needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
# Not optimised: that takes less than half as long to compile, and leaves nothing out that they could find.
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O0", "-g1")


@needs_compiler
def test_nothing_is_found_by_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    library = tmp_path / "libdrafthouse.so"
    build(library, SANITIZERS)
    done = exercise(library)
    assert done.returncode == 0, done.stderr
    assert "avx2: 18 caches" in done.stdout
    control = exercise(library, "control")  # reads behind its queries
    assert control.returncode != 0
    assert "heap-buffer-overflow" in control.stderr


@pytest.mark.parametrize(
    ("name", "quiet"),
    # GCC 12 takes what its own headers leave undefined on purpose for a mistake. Clang warns before it optimises.
    [("g++", ["-O1", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]), ("clang++", ["-O0"])],
)
def test_compilers_have_nothing_to_say(
    name: str, quiet: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    monkeypatch.setenv("CXX", name)
    build(tmp_path / "library.so", ["-Wall", "-Wextra", "-Werror", *quiet])
    assert (tmp_path / "library.so").is_file()


def exercise(library: Path, *more: str) -> subprocess.CompletedProcess[str]:
    runtimes = [
        subprocess.run(
            [str(compiler()), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has to its end
    }
    command = [sys.executable, "-m", "tests.engine.native.exercise", str(library), *more]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_without_a_compiler_setup_goes_on_and_says_what_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NativeBuildError, match=r"no C\+\+ compiler: install g\+\+"):
        build(tmp_path / "library.so")
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NativeBuildError, match="no-such-flag"):
        build(tmp_path / "library.so", ["--no-such-flag"])
    assert list(tmp_path.iterdir()) == []


def test_the_name_says_what_it_was_made_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = library_path()
    sources = tmp_path / "native"
    shutil.copytree(ROOT / "engine" / "native", sources)
    monkeypatch.setattr("engine.native.build.SOURCES", sources)
    assert library_path() == before
    (sources / "rows_int8.inc").write_text("")
    assert library_path() != before
