"""The kit's errors have one root, so whoever calls the kit names one class."""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import pytest

import deployments
from cli.common import told
from client.errors import ClientError
from deploy.server import TritonError
from deployments.errors import DrafthouseError
from deployments.spec import SpecError, load_spec
from engine.errors import QueueFullError, RequestError

ROOT = Path(deployments.__file__).parents[1]
# These rooms import nothing of ours; the kernel's program is one that is not served with.
ALONE = ("client/", "deploy/", "tests/", "engine/native/")


def bases_by_error() -> dict[str, list[str]]:
    """Every class of the rooms that is an exception, and its bases, by their names."""
    found: dict[str, list[str]] = {}
    for init in ROOT.glob("*/__init__.py"):
        for path in init.parent.rglob("*.py"):
            if path.relative_to(ROOT).as_posix().startswith(ALONE):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    found[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
    return {name: bases for name, bases in found.items() if is_error(name, found)}


def is_error(name: str, classes: dict[str, list[str]]) -> bool:
    built_in = getattr(builtins, name, None)
    if isinstance(built_in, type):
        return issubclass(built_in, BaseException)
    return any(is_error(base, classes) for base in classes.get(name, ()))


def test_every_error_of_the_rooms_has_the_one_root() -> None:
    errors = bases_by_error()
    assert len(errors) > 20 and {"SpecError", "TargetError", "CheckpointError", "EngineError"} < set(errors)
    without = [
        name
        for name, bases in errors.items()
        if name != DrafthouseError.__name__
        and DrafthouseError.__name__ not in bases
        and not any(base in errors for base in bases)
    ]
    assert without == [], "these have a root of their own"


def test_the_root_is_caught_and_so_is_what_python_calls_it(tmp_path: Path) -> None:
    with pytest.raises(DrafthouseError, match=r"absent\.yaml"):
        load_spec(tmp_path / "absent.yaml")
    assert issubclass(SpecError, ValueError), "a validator may raise it"
    assert issubclass(QueueFullError, RequestError)
    assert not issubclass(ClientError, DrafthouseError), "the client goes without the kit"


@pytest.mark.parametrize(
    "error",
    [
        DrafthouseError("models/a: no such model"),
        ClientError("models/a: no such model"),
        TritonError("models/a: no such model"),
        OSError("models/a: no such model"),
    ],
)
def test_commands_tell_each_root_in_a_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, told():
        raise error
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: models/a: no such model\n"


def test_a_fault_of_the_kit_s_own_stays_visible() -> None:
    with pytest.raises(ZeroDivisionError), told():
        print(1 / 0)
