"""The kit in a process where other people's `build`, `speculators` and the like are installed: each finds its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import drafthouse
from drafthouse import ROOMS
from tests.drafthouse.strangers import CHECK, STRANGERS, install, run_beside

ROOT = Path(drafthouse.__file__).parents[1]
# The kit first, and they before the kit: a path has both orders, by PYTHONPATH and by what is installed.
ORDERS = pytest.mark.parametrize("order", [1, -1])


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """A folder that holds the kit under its one name, and one that others are installed in."""
    kit, site = tmp_path / "kit", tmp_path / "site"
    kit.mkdir()
    (kit / "drafthouse").symlink_to(ROOT / "drafthouse")
    install(site)
    return [kit, site]


@ORDERS
@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_both_find_their_own(paths: list[Path], tmp_path: Path, order: int, first: str) -> None:
    ours = (
        "import pickle\n"
        "from drafthouse.engine.vllm.proposer import AnpdProposer, NgramTable\n"
        "from drafthouse.build.converters.dispatch import CONVERTERS\n"
        "from drafthouse.client.errors import ClientError\n"
        "table = NgramTable(2)\n"
        "table.extend([1, 2, 3, 1, 2])\n"
        "assert list(table.draft(1)) == [3]\n"
        "assert pickle.loads(pickle.dumps(NgramTable)) is NgramTable\n"
        "import drafthouse.speculators.anpd\n"
        "assert drafthouse.speculators.anpd.NgramTable is NgramTable, 'one module, one name'\n"
        "print(NgramTable.__module__)\n"
    )
    program = CHECK + ours + CHECK if first == "theirs" else ours + CHECK
    assert run_beside(paths[::order], program, tmp_path) == "drafthouse.speculators.anpd\n"


@ORDERS
def test_every_form_of_import_means_the_kit_s_own(paths: list[Path], tmp_path: Path, order: int) -> None:
    """In a package that is made for others: it has the rooms in itself."""
    copy = tmp_path / "copy" / "drafthouse"
    copy.mkdir(parents=True)
    (copy / "__init__.py").write_bytes((ROOT / "drafthouse" / "__init__.py").read_bytes())
    for room in ("build", "speculators"):
        (copy / room / "inner").mkdir(parents=True)
        (copy / room / "__init__.py").write_text(f'WHOSE = "{room} of the kit"\n')
        (copy / room / "anpd.py").write_text("VALUE = 1\n")
    (copy / "build" / "inner" / "forms.py").write_text(
        "import speculators\n"
        "import speculators.anpd\n"
        "import speculators.anpd as renamed\n"
        "from speculators import anpd, WHOSE\n"
        "from speculators.anpd import *\n"
        "from ..anpd import VALUE as relative\n"
        "import engine  # not carried, so theirs\n"
        "def late():\n"
        "    import build, json.decoder\n"
        "    return build.WHOSE, json.decoder.__name__\n"
        "assert renamed is anpd is speculators.anpd and VALUE == relative == 1\n"
        "assert WHOSE == 'speculators of the kit' and engine.WHOSE == 'theirs'\n"
        "assert late() == ('build of the kit', 'json.decoder')\n"
    )
    run_beside([copy.parent, paths[1]][::order], "import drafthouse.build.inner.forms\n" + CHECK, tmp_path)


def test_what_is_not_there_is_missing_under_its_whole_name(paths: list[Path], tmp_path: Path) -> None:
    program = (
        "from drafthouse.engine.vllm import plugin\n"
        "for name in ('drafthouse.speculators.config', 'drafthouse.json', 'drafthouse.numpy'):\n"
        "    try: __import__(name)\n"
        "    except ModuleNotFoundError as error: print(error)\n"
    )
    told = run_beside(paths, program, tmp_path).splitlines()
    assert told[0] == "No module named 'drafthouse.speculators.config'", "not the one that is installed"
    assert len(told) == 3


def test_where_the_kit_is_installed_packages_beside_it_are_none_of_its_rooms(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name, text in (
        ("drafthouse", (ROOT / "drafthouse" / "__init__.py").read_text(encoding="utf-8")),
        ("build", "import client, stranger\nNAMES = client.__name__, stranger.__name__\n"),
        ("client", ""),
        ("stranger", ""),
    ):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(text)
    program = "import drafthouse.build\nprint(*drafthouse.build.NAMES)\n"
    assert run_beside([site], program, tmp_path) == "drafthouse.client stranger\n"


def test_every_room_is_one_of_the_package() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(STRANGERS) < rooms
    assert rooms == ROOMS | {"drafthouse"}
    by_name = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for room in rooms - {"drafthouse"}
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("import_module", "__import__")
    ]
    assert by_name == [], "names in strings are not looked up in the package"
