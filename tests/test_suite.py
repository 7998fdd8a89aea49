"""What the test command runs is what is there."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from tests.conftest import TESTS


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """By default pytest looks into no directory that is called `build`."""
    folders = {part for path in TESTS.rglob("test_*.py") for part in path.relative_to(TESTS).parts[:-1]}
    assert {"build", "engine", "outside"} <= folders
    patterns = pytestconfig.getini("norecursedirs")
    assert not [folder for folder in folders if any(fnmatch(folder, pattern) for pattern in patterns)]
    assert str(TESTS) in [str(pytestconfig.rootpath / path) for path in pytestconfig.getini("testpaths")]
