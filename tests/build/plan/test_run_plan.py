"""Running a plan: once, again, after changes, after failures."""

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build.plan.run import PlanError, run_plan, script
from build.plan.runners import LocalRunner
from build.plan.steps import Step
from build.trtllm.failures import explain
from tests.build.plan.plans import failing, joining


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with one input."""
    monkeypatch.chdir(tmp_path)
    Path("source").mkdir()
    Path("source/weights").write_text("w")
    return tmp_path


PLAN, SOURCE = Path("out/plan"), Path("source/weights")
RUNNER = LocalRunner({"tensorrt_llm": "1.2.1"})


def diamond(first: str = "a", **environment: str) -> tuple[Step, ...]:
    """convert -> build -> collect, and aside something that depends on the source only."""
    convert, engine, aside = Path("out/checkpoint"), Path("out/engine"), Path("out/aside")
    return (
        joining("convert", first, convert, SOURCE, **environment),
        joining("aside", "z", aside, SOURCE),
        joining("build", "b", engine, convert),
        joining("collect", "c", Path("out/all"), engine, aside),
    )


def ran(steps: tuple[Step, ...]) -> tuple[str, ...]:
    return run_plan(steps, PLAN, RUNNER, explain=explain)


def test_everything_runs_once() -> None:
    said: list[str] = []
    assert run_plan(diamond(), PLAN, RUNNER, report=said.append) == (
        *("convert", "aside", "build", "collect"),
    )
    assert Path("out/all").read_text() == "c b a w z w"
    log = (PLAN / "logs/build.log").read_text()
    assert log.startswith("$ ") and "joining 1" in log
    assert [line for line in said if "build.log" in line] == ["3/4 build: done, log out/plan/logs/build.log"]
    assert ran(diamond()) == ()
    assert not [path for path in Path("out").rglob("*") if path.name.endswith(".partial")]


def test_a_changed_flag_rebuilds_what_depends_on_it_and_no_more() -> None:
    ran(diamond())
    assert ran(diamond("A")) == ("convert", "build", "collect")
    assert Path("out/all").read_text() == "c b A w z w"
    assert ran(diamond("A")) == ()


def test_a_step_that_writes_the_same_again_ends_the_rebuilding() -> None:
    ran(diamond())
    assert ran(diamond(GREETING="hello")) == ("convert",)
    assert "hello" in (PLAN / "logs/convert.log").read_text()


def test_a_changed_input_is_noticed_by_content() -> None:
    ran(diamond())
    SOURCE.touch()
    assert ran(diamond()) == ()
    SOURCE.write_text("v")
    assert ran(diamond()) == ("convert", "aside", "build", "collect")


@pytest.mark.parametrize("damage", ["deleted", "changed"])
def test_a_damaged_output_is_made_again(damage: str) -> None:
    ran(diamond())
    engine = Path("out/engine")
    if damage == "deleted":
        engine.unlink()
    else:
        engine.write_text("b a x")
    assert ran(diamond()) == ("build",)
    assert engine.read_text() == "b a w"


def test_another_version_of_the_tools_builds_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    ran(diamond())
    monkeypatch.setattr(LocalRunner, "tools", lambda self, step: {"tensorrt_llm": "1.2.2"})
    assert ran(diamond())[0] == "convert"


def test_the_kit_s_own_modules_count_as_tools() -> None:
    module = Step("own", (sys.executable, "-m", "json.tool", str(SOURCE), "out/x"), (), (Path("out/x"),))
    own = Step("own", (sys.executable, "-m", "build.plan.steps", "out/x"), (), (Path("out/x"),))
    SOURCE.write_text("{}")
    ran((module,))
    assert set(json.loads((PLAN / "own.json").read_text())["step"]["tools"]) == {"tensorrt_llm"}
    with pytest.raises(PlanError, match=r"succeeded without writing out/x"):
        ran((own,))


def test_a_failure_tells_status_log_last_lines_and_what_it_means() -> None:
    Path("out").mkdir()
    Path("out/engine").write_text("of an earlier build")
    message = (
        "Assertion failed: Number of draft tokens (56) is larger than maximum number of draft tokens (0)"
    )
    with pytest.raises(PlanError) as caught:
        ran((failing("build", Path("out/engine"), "first", message),))
    told = str(caught.value)
    assert "1/1 build ended with status 3; its log out/plan/logs/build.log ends:" in told
    assert f"  {message}" in told
    assert "built without a draft length" in told and "--max_draft_len" in told
    assert Path("out/engine").read_text() == "of an earlier build"
    assert sorted(path.name for path in Path("out").iterdir()) == ["engine", "plan"]


def test_after_a_failure_only_the_rest_runs() -> None:
    convert, build, *_ = diamond()[0], diamond()[2]
    with pytest.raises(PlanError, match="2/2 fails"):
        ran((convert, failing("fails", Path("out/x"), "no")))
    assert ran((convert, build)) == ("build",)


def test_a_step_that_writes_nothing_has_failed() -> None:
    step = Step("lazy", (sys.executable, "-c", "pass", "out/x"), (), (Path("out/x"),))
    with pytest.raises(
        PlanError, match=r"1/1 lazy succeeded without writing out/x; log: out/plan/logs/lazy.log"
    ):
        ran((step,))


def test_what_a_killed_process_left_does_not_get_into_the_output() -> None:
    left = Path("out/.engine.partial/engine")
    left.parent.mkdir(parents=True)
    left.write_text("half")
    step = Step("build", (sys.executable, "-c", "import sys; open(sys.argv[1], 'x').write('whole')", "out/engine"),
                (), (Path("out/engine"),))  # fmt: skip
    ran((step,))
    assert Path("out/engine").read_text() == "whole"
    assert not left.exists()


def test_a_missing_program_is_named_with_where_it_is() -> None:
    step = Step("build", ("trtllm-build-that-is-not-here", "out/x"), (), (Path("out/x"),), image="image:1")
    with pytest.raises(
        PlanError, match=r"trtllm-build-that-is-not-here is not installed here; run this inside"
    ):
        ran((step,))


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ((joining("a", "x", Path("o"), Path("nowhere")),), "a reads nowhere, which does not exist"),
        ((joining("a", "x", Path("o")), joining("a", "x", Path("p"))), "the plan has a 2 times"),
        ((joining("a", "x", Path("o")), joining("b", "x", Path("o"))), "the plan has o 2 times"),
        ((joining("a", "x", Path("o"), Path("p/q")), joining("b", "x", Path("p"))), "a reads p/q, which is written"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_work_is_refused(steps: tuple[Step, ...], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        ran(steps)


def test_one_plan_runs_at_a_time() -> None:
    PLAN.mkdir(parents=True)
    with (PLAN / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(PlanError, match="another process runs the plan in out/plan"):
            ran(diamond())
    assert ran(diamond())


def test_the_printed_plan_can_be_pasted() -> None:
    printed = script(diamond("it's", GREETING="two words"), LocalRunner())
    ran(diamond("it's"))
    expected = Path("out/all").read_text()
    shutil.rmtree("out")
    subprocess.run(["bash", "-e", "-c", printed], check=True, stdout=subprocess.DEVNULL)
    assert Path("out/all").read_text() == expected == "c b it's w z w"
    assert printed.count("\n# ") == 3 and "# 2/4 aside" in printed
