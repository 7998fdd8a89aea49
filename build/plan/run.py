"""Prints or runs the steps of a build; what is up to date is left alone, what is interrupted leaves nothing.

A step is done when its record says that this very command, with these variables and tools and with inputs of
this content, wrote outputs that still have the content they had then. Everything else runs again, so a changed
flag rebuilds what depends on it and no more. Outputs are written into a hidden folder beside their place and
renamed when the command has succeeded. Records, logs and remembered hashes lie in one directory per plan.

Example::

    run_plan(steps, Path("runs/trtllm/llama3-8b/plan"), LocalRunner())
"""

import fcntl
import hashlib
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from build.plan.digests import Digests
from build.plan.processes import run_logged
from build.plan.runners import Runner
from build.plan.steps import Step
from deployments.errors import DrafthouseError
from deployments.files.directories import take_place
from deployments.files.reading import read_json
from deployments.files.writing import write_json
from deployments.printable import one_line

_LAST_LINES = 12


class PlanError(DrafthouseError, RuntimeError):
    """A step failed or cannot be run; says which, why, and where its log is."""


def script(steps: Sequence[Step], runner: Runner) -> str:
    """The plan as shell commands that can be pasted one by one, in order, from the working directory."""
    blocks = []
    for number, step in enumerate(steps, 1):
        line = Step(step.name, runner.command(step), environment=runner.environment(step)).shell()
        folders = sorted({str(output.parent) for output in step.outputs} - {"."})
        heading = f"# {number}/{len(steps)} {step.name}" + (f" ({step.image})" if step.image else "")
        lines = [one_line(heading)]  # what ends the line ends the comment, and would be run
        lines += [shlex.join(["mkdir", "-p", *folders])] if folders else []
        blocks.append("\n".join([*lines, line]))
    return "\n\n".join(blocks)


def run_plan(
    steps: Sequence[Step],
    directory: Path,
    runner: Runner,
    *,
    explain: Callable[[str], Iterable[object]] = lambda log: (),
    report: Callable[[str], None] = lambda line: None,
    show: Callable[[str], None] = lambda line: None,
) -> tuple[str, ...]:
    """Run what is not up to date, in order; the names of the steps that ran.

    Args:
        steps: the plan.
        directory: where its records and logs lie; one plan at a time may use it.
        runner: where commands run.
        explain: what a failed command's log is known to mean, a line each.
        report: gets a line for each step.
        show: gets, several times a second, the running step, its elapsed time and the last line of its log.

    Raises:
        PlanError: a step failed, an input is missing, or another process runs this plan.
        KeyboardInterrupt: Ctrl-C; the running step has ended and left no output.
    """
    _check_order(steps)
    directory.mkdir(parents=True, exist_ok=True)
    with _only_one(directory):
        plan = _Plan(directory, runner, explain, report, show)
        return tuple(
            step.name for number, step in enumerate(steps, 1) if plan.bring(step, f"{number}/{len(steps)}")
        )


@dataclass(frozen=True)
class _Plan:
    directory: Path
    runner: Runner
    explain: Callable[[str], Iterable[object]]
    report: Callable[[str], None]
    show: Callable[[str], None]

    def bring(self, step: Step, position: str) -> bool:
        """Bring a step up to date; whether it had to run."""
        title = f"{position} {step.name}"
        hashes = Digests(self.directory / "hashes.json", lambda path: self.show(f"{title}: reading {path}"))
        record = self.directory / f"{step.name}.json"
        fingerprint = self._fingerprint(step, hashes)
        hashes.save()
        if _recorded(record) == {"step": fingerprint, "outputs": _present(step.outputs, hashes)}:
            self.report(f"{title}: up to date")
            return False
        record.unlink(missing_ok=True)
        with _staged(step) as staged:
            self._run(staged, title)
            missing = [path for path in staged.outputs if not path.exists()]
            if missing:
                raise PlanError(
                    f"{title} succeeded without writing {step.outputs[staged.outputs.index(missing[0])]}; "
                    f"log: {self._log(step)}"
                )
            for output, place in zip(step.outputs, staged.outputs, strict=True):
                take_place(place, output)
        content = {"step": fingerprint, "outputs": _present(step.outputs, hashes)}
        hashes.save()
        write_json(record, content, indent=1)
        self.report(f"{title}: done, log {self._log(step)}")
        return True

    def _fingerprint(self, step: Step, hashes: Digests) -> dict[str, Any]:
        """Everything that decides what the step writes."""
        for path in step.inputs:
            if not path.exists():
                raise PlanError(
                    f"{step.name} reads {path}, which does not exist and no step writes; "
                    "put it there, or correct its path in the spec"
                )
        return {
            "command": list(step.command),
            "environment": dict(step.environment),
            "inputs": {str(path): hashes.of(path) for path in step.inputs},
            "tools": {**self.runner.tools(step), **_own_code(step.command)},
        }

    def _run(self, step: Step, title: str) -> None:
        log, command = self._log(step), self.runner.command(step)
        log.parent.mkdir(exist_ok=True)
        heading = f"$ {step.shell()}\n"
        log.write_text(heading, encoding="utf-8")
        self.show(title)
        try:
            status = run_logged(
                command,
                self.runner.environment(step),
                log,
                lambda seconds, line: self.show(f"{title} {_clock(seconds)}  {line}"),
            )
        except FileNotFoundError:
            raise PlanError(f"{title}: {self.runner.cannot_start(step)}") from None
        except BaseException:
            self.runner.end(step)
            raise
        if status != 0:
            text = log.read_text(encoding="utf-8", errors="replace")[len(heading) :]
            told = [_failure(title, status, log, text), *map(str, self.explain(text))]
            raise PlanError("\n".join(told))

    def _log(self, step: Step) -> Path:
        return self.directory / "logs" / f"{step.name}.log"


def _check_order(steps: Sequence[Step]) -> None:
    said: Counter[str | Path] = Counter(step.name for step in steps)
    said.update(path for step in steps for path in step.outputs)
    for item, count in said.items():
        if count > 1:
            raise PlanError(f"the plan has {item} {count} times; names of steps and outputs are unique")
    for number, step in enumerate(steps):
        later = {output for other in steps[number:] for output in other.outputs}
        for path in step.inputs:
            if later & {path, *path.parents}:
                raise PlanError(f"{step.name} reads {path}, which is written only by it or a later step")


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PlanError(
                f"another process runs the plan in {directory}; wait until it has ended"
            ) from None
        yield


@contextmanager
def _staged(step: Step) -> Iterator[Step]:
    """The step with its outputs in hidden folders beside their places; the folders are gone afterwards."""
    folders = {output: output.parent / f".{output.name}.partial" for output in step.outputs}
    try:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
            folder.mkdir(parents=True)
        yield step.writing_to({output: folder / output.name for output, folder in folders.items()})
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def _present(outputs: Sequence[Path], hashes: Digests) -> dict[str, str]:
    return {str(path): hashes.of(path) for path in outputs if path.exists()}


def _recorded(record: Path) -> Any:
    try:
        return read_json(record, ValueError)
    except ValueError:
        return None


def _own_code(command: Sequence[str]) -> dict[str, str]:
    """For `python -m` with a module of the kit: the hash of the code in its package, whose changes count too."""
    if "-m" not in command[:-1]:
        return {}
    module = command[command.index("-m") + 1]
    root = Path(__file__).resolve().parents[2]
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        return {}
    if found is None or found.origin is None or root not in Path(found.origin).resolve().parents:
        return {}
    digest = hashlib.sha256()
    for path in sorted(Path(found.origin).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return {module: digest.hexdigest()}


def _failure(title: str, status: int, log: Path, text: str) -> str:
    """What to tell of a failed command, with the end of what it said."""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    how = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
    return "\n".join([f"{title} {how}; its log {log} ends:", *(f"  {line}" for line in lines[-_LAST_LINES:])])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
