"""`python -m planner.bench.windows`: what is measured is what requests do, and each answer is measured once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from rich.console import Console

from build.compile import compile_engine
from deployments.spec import load_spec
from engine.policy import StaticPolicy
from engine.request import GenerationRequest
from engine.running import RunningRequest
from engine.serving.text import TextCodec
from planner.bench.windows import measure
from planner.bench.windows.__main__ import main
from planner.bench.windows.documents import Document, DocumentsError, chosen, read_documents
from planner.bench.windows.measure import cut
from planner.bench.windows.records import RECORDS, RESULT, TIMINGS, WindowRecord
from planner.bench.windows.table import cells_of, window_table
from planner.profile.records import RecordingPolicy
from speculators.windowed import Choice, WindowedSpeculator
from tests.engine.driving import make_engine, prompt_of, run
from tests.tiny import KERNELS, MAX_LENGTH, THREADS, TinyTargets

LENGTH, MAX_TOKENS = 3, 24
SECTION = {"method": "windowed", "draft_length": LENGTH, "window": 64}
CONTEXTS, WINDOWS = (100, 194), (32, 128, MAX_LENGTH)
CHOICES = get_args(Choice)

native = pytest.mark.skipif("native" not in KERNELS, reason="needs the kit's own kernel")


class Bench:
    """A deployment in a directory of its own, and the command on it."""

    def __init__(self, directory: Path, targets: TinyTargets, **sections: Any) -> None:
        engine = {"max_batch_size": 2, "max_sequence_length": MAX_LENGTH, "threads": THREADS}
        content = {
            "name": "tiny",
            "target": {"model": str(targets.source("llama"))},
            "engine": sections.get("kind") or {**engine, **sections.get("engine", {})},
            "speculation": sections.get("speculation", SECTION),
        }
        self.spec_path, self.output = directory / "spec.yaml", directory / "out"
        self.spec_path.write_text(yaml.safe_dump(content))
        self.documents = directory / "documents.jsonl"
        texts = ["".join(chr(97 + token % 26) for token in prompt_of(230, seed)) for seed in range(3)]
        entries = [{"id": f"d{number}", "text": text} for number, text in enumerate(texts)]
        self.documents.write_text("".join(json.dumps(each) + "\n" for each in entries))

    def build(self) -> Bench:
        spec = load_spec(self.spec_path)
        compile_engine(
            spec.target.model, spec.engine_directory, precision="int8", max_sequence_length=MAX_LENGTH
        )
        return self

    def run(self, *words: Any, **options: Any) -> int:
        given = {"context": CONTEXTS, "window": WINDOWS, "count": [2], "max-tokens": [MAX_TOKENS], **options}
        pairs = [
            word for name, values in given.items() for value in values for word in (f"--{name}", str(value))
        ]
        files = ["--documents", str(self.documents), "--output", str(self.output)]
        return main([str(self.spec_path), *files, *pairs, *map(str, words)])

    def records(self) -> list[WindowRecord]:
        return [parsed(line) for line in (self.output / RECORDS).read_text().splitlines()[1:]]


def parsed(line: str) -> WindowRecord:
    found = json.loads(line)
    return WindowRecord(**{**found, "accepted": tuple(found["accepted"])})


@pytest.fixture
def bench(tmp_path: Path, tiny_targets: TinyTargets, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, tiny_targets).build()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_targets: TinyTargets) -> Bench:
    """The whole grid."""
    if "native" not in KERNELS:
        pytest.skip("needs the kit's own kernel")
    directory = tmp_path_factory.mktemp("windows")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        made = Bench(directory, tiny_targets).build()
        assert made.run() == 0
    return made


def test_every_combination_is_measured_on_every_document_and_equals_plain_decoding(measured: Bench) -> None:
    found = measured.records()
    assert sorted(each.key for each in found) == sorted(
        (name, context, window, choice)
        for name in ("d0", "d1")
        for context in CONTEXTS
        for window in WINDOWS
        for choice in CHOICES
    )
    assert all(each.equal and each.accepted for each in found)


def test_a_window_that_holds_everything_accepts_everything_and_smaller_ones_less(measured: Bench) -> None:
    result = json.loads((measured.output / RESULT).read_text())
    whole = [cell for cell in result["cells"] if cell["window"] == MAX_LENGTH]
    parts = [cell for cell in result["cells"] if cell["window"] == 32]
    assert {cell["share"]["value"] for cell in whole} == {1.0}
    assert {cell["length"]["value"] for cell in whole} == {LENGTH + 1.0}
    assert all(0 < cell["share"]["value"] < 1 for cell in parts)
    assert all(
        cell["share"]["low"] <= cell["share"]["value"] <= cell["share"]["high"] for cell in result["cells"]
    )


def test_documents_are_read_once(measured: Bench) -> None:
    assert {each.prompt_tokens for each in measured.records()} == {97, 193}
    assert all(each.read_tokens <= 33 for each in measured.records())


def test_what_is_measured_is_what_a_request_without_the_cache_does(
    measured: Bench, tiny_targets: TinyTargets
) -> None:
    by_key = {each.key: each.accepted for each in measured.records()}
    ways = [[by_key[name, 194, 128, choice] for name in ("d0", "d1")] for choice in CHOICES]
    assert ways[0] != ways[1] != ways[2] != ways[0], "choices read different rows"
    runner = tiny_targets.runner("llama", "int8", "native")
    texts = {each.id: each.tokens for each in read_documents(measured.documents, encode(measured))}
    for each in measured.records():
        drafter = WindowedSpeculator(LENGTH, each.window, None, each.choice, min_context=1, adaptive=False)  # type: ignore[arg-type]
        policy = RecordingPolicy(StaticPolicy([drafter], adaptive=False))
        engine = make_engine(runner, policy=policy, idle_prefill_chunk=256, kv_cache_reuse=False)
        prompt = texts[each.document][: each.prompt_tokens]
        ends = frozenset(runner.manifest.end_ids)
        (outcome,) = run(engine, [GenerationRequest(prompt, MAX_TOKENS + LENGTH + 1, end_ids=ends)])
        assert outcome.last.metrics.kv_reused_blocks == 0
        (drafts,) = policy.drafts.values()
        assert each.accepted == tuple(
            len(draft.path) for draft in drafts if draft.context < len(prompt) + MAX_TOKENS
        )
        assert all(draft.nodes == LENGTH for draft in drafts[: len(each.accepted)]), "no draft is cut short"


def encode(bench: Bench) -> Callable[[str], list[int]]:
    return TextCodec(load_spec(bench.spec_path).target.model).encode


def test_the_end_of_a_cut_prompt_is_weighed_alike_whether_its_beginning_is_taken_over() -> None:
    def weighed(length: int, cached: int) -> int:
        item = RunningRequest.begin(1, GenerationRequest((1,) * length, 1), lambda output: None)
        item.cached, item.blocks = cached, range(100)
        while True:
            chunk = item.next_chunk(256, 16)
            item.cached += len(chunk.tokens)
            if item.cached == length:
                assert chunk.weighed
                return len(chunk.tokens)

    def alike(length: int) -> bool:
        return weighed(length, 0) == weighed(length, (length - 2) // 32 * 32) == 16

    for context in range(64, 600):
        length = cut(context, 16, 32)
        assert context - 16 < length <= context and alike(length)
    assert not all(alike(length) for length in range(64, 600))
    assert cut(100, 0, 32) == 100


@native
def test_what_is_recorded_is_not_measured_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.run("--choice", "snapkv", context=[100], window=[32, 64]) == 0
    whole = (bench.output / RECORDS).read_text()
    lines = whole.splitlines(keepends=True)
    (bench.output / RECORDS).write_text("".join(lines[:3]) + lines[3][:20])  # a kill in the midst of a line
    bench.run("--choice", "snapkv", context=[100], window=[32, 64])
    assert (bench.output / RECORDS).read_text().startswith("".join(lines[:3]))
    assert [(each.key, each.accepted) for each in bench.records()] == [
        (each.key, each.accepted) for each in map(parsed, lines[1:])
    ]

    def refuse(*given: Any, **options: Any) -> None:
        raise AssertionError("opened an engine for what is recorded")

    monkeypatch.setattr(measure, "open_runner", refuse)
    assert bench.run("--choice", "snapkv", context=[100], window=[64]) == 0
    with pytest.raises(AssertionError, match="opened an engine"):
        bench.run("--choice", "snapkv", context=[100], window=[128])


def test_stopping_keeps_what_is_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drafted = measure._Bench.drafted

    def interrupted(self: Any, key: Any, *given: Any) -> WindowRecord:
        if key[2] == 128:
            raise KeyboardInterrupt
        return drafted(self, key, *given)

    monkeypatch.setattr(measure._Bench, "drafted", interrupted)
    assert bench.run("--choice", "window", context=[100]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert [each.window for each in bench.records()] == [32]


def test_an_answer_that_differs_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure._Bench, "plain", lambda bench, prompt: [1])
    assert bench.run("--choice", "window", context=[100], window=[32]) == 1
    told = capsys.readouterr().out
    assert "plain decoding's: 0 of 2" in told and "2 answers differ" in told


@pytest.mark.parametrize(
    ("sections", "options", "told"),
    [
        ({"speculation": {"method": "anpd"}}, {}, "method: anpd; windowed is what is measured"),
        ({"kind": {"kind": "tensorrt_llm"}}, {}, "(engine.kind); this needs"),
        ({"speculation": {"method": "plan", "plan": "plan.json"}}, {}, "windowed is what is measured"),
        ({}, {"context": [229]}, "--context 229 does not fit: 64 to 228 tokens do"),
        ({}, {"context": [63]}, "--context 63 does not fit"),
        ({}, {"context": [228], "max-tokens": [8]}, ""),
        (
            {"engine": {"attention_kernel": "openvino"}},
            {"choice": ["window", "verified"]},
            "--choice verified goes by",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(
    sections: dict[str, Any],
    options: dict[str, Any],
    told: str,
    tmp_path: Path,
    tiny_targets: TinyTargets,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, tiny_targets, **sections)
    if not told:  # the longest that fits, which is not refused
        assert bench.build().run("--choice", "window", **{"window": [32], **options}) == 0
        return
    if "kind" not in sections:
        bench.build()
    assert bench.run(**options) == 2
    errors = capsys.readouterr().err
    assert told in errors and errors.count("\n") == 1


def test_records_of_other_settings_and_foreign_directories_are_left_alone(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"context": [100], "window": [32], "choice": ["window"], "count": [1]}
    assert bench.run(**small) == 0
    before = (bench.output / RECORDS).read_text()
    assert bench.run(**small, **{"max-tokens": [12]}) == 2
    assert f"max_tokens was {MAX_TOKENS}, is 12" in capsys.readouterr().err
    assert (bench.output / RECORDS).read_text() == before
    (bench.output / RECORDS).write_text("[]\n")
    assert bench.run(**small) == 2
    (bench.output / RECORDS).unlink()
    assert bench.run(**small) == 2
    assert "holds something else" in capsys.readouterr().err


def test_documents_of_longer_contexts_are_among_those_of_shorter_ones() -> None:
    lengths = [10, 50, 20, 50, 30, 10, 50, 50]
    documents = [Document(str(number), (1,) * length) for number, length in enumerate(lengths)]
    found = {
        context: [each.id for each in group] for context, group in chosen(documents, [10, 50, 20], 2).items()
    }
    assert found == {10: ["1", "6"], 20: ["1", "6"], 50: ["1", "6"]}
    more = chosen(documents, [10, 20, 50], 5)
    assert [len(more[context]) for context in (10, 20, 50)] == [5, 5, 4]
    with pytest.raises(DocumentsError, match="no document has 51 tokens; the longest of 8 has 50"):
        chosen(documents, [51, 10], 1)


@pytest.mark.parametrize("line", ['{"id": "a"}', "[1]", "{", '{"id": 1, "text": "b"}'])
def test_other_lines_are_refused_by_number(line: str, tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text('{"id": "a", "text": "b"}\n\n' + line + "\n")
    with pytest.raises(DocumentsError, match=r"documents\.jsonl:3: expected an object"):
        read_documents(path, lambda text: [1])


def test_the_table_fits_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        WindowRecord(f"d{number}", 8000, 7998, 30, window, choice, (4, number, 0) * 500, True, 1.0)
        for number in range(3)
        for window in (128, 2048)
        for choice in CHOICES
    ]
    cells = cells_of(records, 4)
    assert [figure.value for figure in cells[0].by_position] == pytest.approx([5 / 9, 4 / 9, 3 / 9, 3 / 9])
    assert cells[0].share.value == pytest.approx(5 / 12)
    assert cells[0].length.value == pytest.approx(1 + 5 / 3)
    out = io.StringIO()
    Console(file=out, width=100).print(window_table(cells))
    assert "…" not in out.getvalue() and "0.42, 2.67" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 100


@native
def test_batches_are_timed_beside_plain_decoding(
    tmp_path: Path,
    tiny_targets: TinyTargets,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A window that holds everything drafts what the target says; behind 32 rows of 100 less of it is accepted."""
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, tiny_targets, speculation={**SECTION, "adaptive": False}).build()
    options = {
        "context": [100],
        "window": (32, MAX_LENGTH),
        "choice": ["window"],
        "lookup": (0, 2),
        "count": [3],
    }
    assert bench.run(**options, batch=(1, 2), rounds=[2]) == 0
    speeds = json.loads((bench.output / RESULT).read_text())["speeds"]
    assert [(each["batch"], each["arm"]) for each in speeds] == [
        (batch, arm)
        for batch in (1, 2)
        for arm in (
            "plain",
            *(f"window of {window}{lookup}" for window in (32, MAX_LENGTH) for lookup in ("", ", lookup 2")),
        )
    ]
    assert all(each["equal"] and len(each["rates"]) == len(each["ratios"]) == 2 for each in speeds)
    assert [each["documents"] for each in speeds] == [3] * 5 + [
        2
    ] * 5  # two at once: the third has nobody beside it
    for plain, part, part_looked_up, whole, whole_looked_up in (speeds[:5], speeds[5:]):
        assert plain["tokens_a_step"] == 1 and plain["ratios"] == [1, 1]
        # 23 tokens behind the first one, in steps of four, and the last three in one.
        assert whole["tokens_a_step"] == whole_looked_up["tokens_a_step"] == pytest.approx(23 / 6)
        assert part["tokens_a_step"] == part_looked_up["tokens_a_step"] < whole["tokens_a_step"]
    assert "100 tokens of context, timed in turns" in capsys.readouterr().out


@native
def test_a_batch_is_timed_while_it_is_whole(bench: Bench) -> None:
    """Where one request ends, the clock stops: what others still emit has a smaller batch."""
    options = {"context": [100], "window": [32], "choice": ["window"], "rounds": [1]}
    assert bench.run(**options, batch=[2]) == 0
    timings = [json.loads(line) for line in (bench.output / TIMINGS).read_text().splitlines()]
    plain, drafted = (
        next(each for each in timings if each["arm"] == arm) for arm in ("plain", "window of 32")
    )
    assert 2 * (MAX_TOKENS - 4) <= plain["tokens"] == plain["steps"] <= 2 * (MAX_TOKENS - 1)
    assert drafted["answers"] == plain["answers"]
    assert drafted["steps"] % 2 == 0 and drafted["tokens"] <= 2 * (MAX_TOKENS - 1)
    assert bench.run(**options, batch=[1]) == 0
    assert all(
        len(json.loads(line)["documents"]) == 1 for line in (bench.output / TIMINGS).read_text().splitlines()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": [1], "max-tokens": [8]}, "--batch needs --max-tokens 16 or more"),
        ({"lookup": [2]}, "--lookup is timed: say with --batch how many at once"),
    ],
)
def test_timing_that_cannot_be_is_refused(
    bench: Bench, capsys: pytest.CaptureFixture[str], options: dict[str, Any], message: str
) -> None:
    assert bench.run(context=[100], **options) == 2
    assert message in capsys.readouterr().err
    assert not bench.output.exists()


def test_more_at_once_than_there_are_documents_are_refused(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run(context=[100], batch=[3]) == 2
    assert "--batch 3 needs as many documents of 100 tokens (--count); there are 2" in capsys.readouterr().err
    assert not bench.output.exists()
