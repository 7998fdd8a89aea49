"""Fixtures that more than one room uses."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import settings

from tests.graphs import compiled_when_used
from tests.revival import REVIVALS
from tests.telling import tell
from tests.tiny import TinyTargets

if TYPE_CHECKING:
    from tests.drafters import TinyDrafters

TESTS = Path(__file__).parent
SMOLLM2 = TESTS.parent / "models" / "smollm2-135m"
SERVED = frozenset({"tests/client", "tests/deploy", "tests/end_to_end", "tests/loadtest"})
LONGEST = frozenset(
    {
        "engine/native/test_native_build.py",
        "engine/test_processors.py",
        "planner/test_trainers.py",
        "speculators/training/test_families.py",
        "speculators/training/test_resume.py",
    }
)

# PyTorch's threads cost more than they bring with models this small, most of all where several processes run tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Kernels in Triton's language are tested in its interpreter, which must be asked for before Triton is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="module", autouse=True)
def graphs_when_used() -> Iterator[None]:
    """Compile networks when they are used; a module that is about all of them overrides this."""
    with compiled_when_used():
        yield


@pytest.fixture(scope="session")
def tiny_targets(tmp_path_factory: pytest.TempPathFactory) -> TinyTargets:
    """Tiny random targets and their compiled engines, in a place of their own or where another process made some."""
    made = os.environ.get("DRAFTHOUSE_TEST_TARGETS")
    return TinyTargets(Path(made) if made else tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_drafters(tiny_targets: TinyTargets, tmp_path_factory: pytest.TempPathFactory) -> TinyDrafters:
    """Tiny drafters of every method, for the target `tests.drafters.VARIANT`; making them needs PyTorch."""
    from tests.drafters import TinyDrafters

    return TinyDrafters(tiny_targets, tmp_path_factory.mktemp("drafters"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M in Hugging Face layout; tests that use it are marked `model`."""
    if not (SMOLLM2 / "model.safetensors").is_file():
        pytest.skip(f"{SMOLLM2} is missing: drafthouse model smollm2-135m models/smollm2-135m")
    return SMOLLM2


@pytest.fixture
def one_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one figure of a report, for tests that look at none: they take longer than a small sweep."""
    from loadtest.plots import PLOTS

    monkeypatch.setattr("loadtest.report.PLOTS", {"throughput": PLOTS["throughput"]})


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw none at the end of a training run, for tests that look at none: they take as long as forty steps."""
    monkeypatch.setattr("speculators.training.records.Records.draw", lambda records: None)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """What is told while tests run."""
    tell(config)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end: looking through it for garbage takes a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules come first, so that no process is left alone with one of them in the end."""
    items.sort(key=lambda item: str(item.path.relative_to(TESTS)) not in LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """A test whose server has met a fault of Triton's own is run once more, see `tests.revival`.

    So is every test that fails, where DRAFTHOUSE_TEST_AGAIN is set; the first failure is told among the warnings.
    """
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    failures = [report for report in reports if report.failed]
    ended = REVIVALS.ended() if failures else {}
    for report in failures:
        report.sections.extend((f"server {name} has ended", log) for name, log in ended.items())
    revived = bool(failures) and REVIVALS.made()
    if revived or (failures and "DRAFTHOUSE_TEST_AGAIN" in os.environ):
        reason = "Triton's gRPC server had met a fault of its own" if revived else "it had failed"
        told = "\n".join([f"run once more, since {reason}:", *(report.longreprtext for report in failures)])
        item.warn(pytest.PytestWarning(told))
        item._initrequest()  # type: ignore[attr-defined]  # as pytest itself does before each run
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes (`pytest -n 2`) one runs a module, or a folder whose tests share servers."""
    from xdist.scheduler import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            folder = module.rpartition("/")[0]
            return folder if folder in SERVED else module

    config.option.loadscopereorder = False
    return ByServer(config, log)


# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# In the background of a shell SIGINT and SIGQUIT are ignored, under `nohup` SIGHUP; programs that tests start would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
