"""Steps made of harmless real commands, which the plan's tests run."""

import sys
from pathlib import Path

from build.plan.steps import Step

# argv: word, output, inputs...: writes the word and the inputs' contents.
_JOIN = """
import os, pathlib, sys
word, output, *inputs = sys.argv[1:]
texts = [pathlib.Path(path).read_text() for path in inputs]
print("joining", len(texts), os.environ.get("GREETING", ""))
pathlib.Path(output).write_text(" ".join([word, *texts]))
"""
# argv: output folder: writes half of what it should, starts a child, says so, and waits.
_HALF = """
import pathlib, subprocess, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / "half").write_text("half")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("grandchild", child.pid, flush=True)
child.wait()
"""


def joining(name: str, word: str, output: Path, *inputs: Path, **environment: str) -> Step:
    """Writes `word` and what stands in the inputs."""
    command = (sys.executable, "-c", _JOIN, word, str(output), *map(str, inputs))
    return Step(name, command, inputs, (output,), environment)


def failing(name: str, output: Path, *lines: str) -> Step:
    """Writes its output, prints the lines and fails with status 3."""
    code = (
        "import pathlib, sys\npathlib.Path(sys.argv[1]).touch()\nprint(*sys.argv[2:], sep='\\n')\nsys.exit(3)"
    )
    return Step(name, (sys.executable, "-c", code, str(output), *lines), (), (output,))


def hanging(name: str, output: Path) -> Step:
    """Writes half of a folder and waits for ten minutes in a child process."""
    return Step(name, (sys.executable, "-c", _HALF, str(output)), (), (output,))
