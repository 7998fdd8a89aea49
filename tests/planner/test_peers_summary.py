"""What `drafthouse peers` says is what its records say."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from planner.bench.peers.records import PeerRecord, append_record, read_records
from planner.bench.peers.summary import MIXED, SummaryError, best_of_each, summarise
from planner.bench.peers.table import acceptance_table, category_table, peers_table, position_table


def answer(
    engine: str,
    method: str,
    prompt: str = "1",
    *,
    category: str = "math",
    seconds: float = 3.0,
    count: int = 11,
    steps: int | None = 11,
    round_: int = 0,
) -> PeerRecord:
    """An answer of `count` tokens whose first one takes a second."""
    return PeerRecord(
        engine=engine,
        method=method,
        round=round_,
        prompt=prompt,
        category=category,
        prompt_tokens=7,
        tokens=tuple(range(count)),
        seconds=seconds,
        first_token_seconds=1.0,
        steps=steps,
    )


def test_speeds_are_tokens_over_time_with_and_without_the_prompt() -> None:
    (plain,) = summarise([answer("drafthouse", "none")])
    assert plain.decode_rate == pytest.approx(10 / 2)
    assert plain.whole_rate == pytest.approx(11 / 3)
    assert (plain.speedup, plain.to_ours, plain.interval) == (1.0, 1.0, None)


def together(
    method: str, *answers: tuple[float, tuple[float, ...]], category: str = "math"
) -> list[PeerRecord]:
    """Answers that were asked at once, each with its end and the times of its tokens."""
    return [
        replace(
            answer("drafthouse", method, str(number), seconds=ended, count=len(times)),
            first_token_seconds=times[0] if times else ended,
            token_seconds=times,
            group="0",
            category=category if number else "math",
        )
        for number, (ended, times) in enumerate(answers)
    ]


def test_a_batch_is_decoded_from_the_last_first_token_to_the_last_token() -> None:
    """The first request has three tokens before the second has its first; the third ends before that."""
    records = together(
        "none", (5.0, (1.0, 1.5, 2.0, 3.0, 4.0)), (6.0, (2.0, 2.0, 4.0, 6.0)), (1.8, (1.2, 1.8))
    )
    (plain,) = summarise(records)
    assert plain.decode_rate == pytest.approx(4 / (6 - 2))
    assert plain.whole_rate == pytest.approx(11 / 6)


def test_a_request_without_a_token_has_begun_when_it_ends() -> None:
    (plain,) = summarise(together("none", (5.0, (1.0, 2.0, 3.0, 5.0)), (2.5, ())))
    assert plain.decode_rate == pytest.approx(2 / (5 - 2.5))


def test_groups_of_several_categories_are_one() -> None:
    plain = together("none", (3.0, (1.0, 2.0, 3.0)), (3.0, (1.0, 2.0, 3.0)), category="qa")
    faster = together("anpd", (2.0, (1.0, 1.5, 2.0)), (2.0, (1.0, 1.5, 2.0)), category="qa")
    mixed = summarise([*plain, *faster])[1]
    assert mixed.by_category == {MIXED: pytest.approx(2)}
    assert list(mixed.acceptance_by_category) == ["math", "qa"], "steps are a request's own"
    same = [replace(item, category="math") for item in (*plain, *faster)]
    assert list(summarise(same)[1].by_category) == ["math"]


def test_the_interval_of_batches_is_over_groups() -> None:
    one = [
        *together("none", (3.0, (1.0, 3.0)), (3.0, (1.0, 3.0))),
        *together("anpd", (2.0, (1.0, 2.0)), (2.0, (1.0, 2.0))),
    ]
    assert summarise(one)[1].interval is None
    two = [*one, *(replace(item, prompt=f"b{item.prompt}", group="b0") for item in one)]
    assert summarise(two)[1].interval == pytest.approx((2.0, 2.0))


def test_requests_that_were_asked_in_other_groups_are_not_compared() -> None:
    plain = together("none", (3.0, (1.0, 3.0)), (3.0, (1.0, 3.0)))
    alone = [replace(item, method="anpd", group="") for item in plain]
    with pytest.raises(SummaryError, match="were not asked the same prompts"):
        summarise([*plain, *alone])


def test_drafting_is_milliseconds_over_drafted_tokens_and_empty_where_it_is_not_told() -> None:
    records = [
        replace(answer("drafthouse", "none"), draft_tokens=0, draft_seconds=0.0),
        replace(answer("drafthouse", "none", "2"), draft_tokens=0, draft_seconds=0.0),
        replace(answer("drafthouse", "anpd"), draft_tokens=30, draft_seconds=0.2),
        replace(answer("drafthouse", "anpd", "2"), draft_tokens=10, draft_seconds=0.1),
        answer("peer", "none"),
    ]
    summaries = summarise(records)
    assert [item.draft_ms for item in summaries] == [None, pytest.approx(7.5), None]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(peers_table(summaries))
    lines = console.export_text().splitlines()
    assert [line for line in lines if "7.50" in line] == [line for line in lines if "anpd" in line]


def test_acceptance_by_position_is_of_the_drafts_that_were_so_long() -> None:
    records = [
        answer("drafthouse", "none"),
        answer("drafthouse", "none", "2"),
        replace(answer("drafthouse", "anpd"), drafted=(4, 4, 2), accepted=(3, 1)),
        replace(answer("drafthouse", "anpd", "2"), drafted=(2,), accepted=()),
    ]
    plain, drafted = summarise(records)
    assert plain.by_position == []
    assert [(figure.value, figure.count) for figure in drafted.by_position] == [(0.5, 6), (0.25, 4), (0, 2)]
    output = io.StringIO()
    Console(file=output, width=120).print(position_table([plain, drafted]))
    assert "drafthouse anpd" in output.getvalue() and "drafthouse none" not in output.getvalue()
    assert "0.500 (0.00 to 0.75) of 6" in output.getvalue() and "0.000 of 2" in output.getvalue()


def test_a_speedup_is_the_mean_over_categories_of_ratios_to_the_same_engine() -> None:
    """Categories count alike, however long their answers are; and an engine is not compared with another's base."""
    records = [
        answer("drafthouse", "none", seconds=2.0),
        answer("peer", "none", seconds=3.0),
        answer("peer", "lookup", seconds=2.0),  # twice as fast
        answer("drafthouse", "none", "2", category="qa", count=101, seconds=11.0),
        answer("peer", "none", "2", category="qa", count=101, seconds=11.0),
        answer("peer", "lookup", "2", category="qa", count=101, seconds=5.0),  # 2.5 times
    ]
    found = {(item.engine, item.method): item for item in summarise(records)}
    assert found["peer", "lookup"].speedup == pytest.approx((2 + 2.5) / 2)
    assert found["peer", "lookup"].to_ours == pytest.approx((1 + 2.5) / 2)
    assert found["peer", "none"].to_ours == pytest.approx((0.5 + 1) / 2)


def test_rounds_of_a_prompt_are_added_up() -> None:
    records = [
        answer("drafthouse", method, seconds=seconds, round_=number)
        for method, both in (("none", (3.0, 5.0)), ("anpd", (2.0, 2.0)))
        for number, seconds in enumerate(both)
    ]
    _, anpd = summarise(records)
    assert anpd.speedup == pytest.approx((20 / 2) / (20 / 6))


def test_the_interval_covers_the_spread_over_prompts_and_shrinks_to_nothing_without_any() -> None:
    def records(seconds: tuple[float, ...]) -> list[PeerRecord]:
        return [
            item
            for prompt, time in enumerate(seconds)
            for item in (
                answer("drafthouse", "none", str(prompt)),
                answer("drafthouse", "anpd", str(prompt), seconds=time),
            )
        ]

    _, same = summarise(records((2.0, 2.0, 2.0)))
    assert same.interval == pytest.approx((2.0, 2.0))
    _, spread = summarise(records((1.5, 2.0, 3.0, 3.0)))
    low, high = spread.interval or (0.0, 0.0)
    assert 1.0 <= low < spread.speedup < high <= 4.0


def test_the_interval_of_a_category_is_of_its_prompts_alone() -> None:
    """One spreads, one is always the same, and one has a single prompt, so that there is none of the whole."""

    def records(prompts: dict[str, tuple[str, float]]) -> list[PeerRecord]:
        return [
            item
            for prompt, (category, time) in prompts.items()
            for item in (
                answer("drafthouse", "none", prompt, category=category),
                answer("drafthouse", "anpd", prompt, category=category, seconds=time),
            )
        ]

    both = {"1": ("qa", 1.5), "2": ("qa", 3.0), "3": ("math", 2.0), "4": ("math", 2.0)}
    _, found = summarise(records(both))
    assert found.interval_by_category == {"math": pytest.approx((2, 2)), "qa": pytest.approx((1, 4))}
    assert found.interval == pytest.approx((1.5, 3))
    _, found = summarise(records({**both, "5": ("rag", 2.0)}))
    assert found.interval_by_category["rag"] is None is found.interval
    assert found.interval_by_category["math"] == pytest.approx((2, 2))


def test_the_acceptance_length_of_a_category_is_of_its_answers_alone() -> None:
    records = [
        answer("drafthouse", "none"),
        answer("drafthouse", "none", "2", category="rag"),
        answer("drafthouse", "anpd", steps=4),
        answer("drafthouse", "anpd", "2", category="rag", steps=1),
        answer("peer", "none", steps=None),
        answer("peer", "none", "2", category="rag", steps=None),
        answer("peer", "lookup", steps=None),
        answer("peer", "lookup", "2", category="rag", steps=None),
    ]
    summaries = summarise(records)
    assert summaries[1].acceptance_by_category == {"math": pytest.approx(2.75), "rag": pytest.approx(11)}
    assert summaries[3].acceptance_by_category == {"math": None, "rag": None}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(acceptance_table(summaries))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert rows[1:] == [["length", "of", "arm", "2", "4"], ["math", "2.75"], ["rag", "11.0"]]


def test_acceptance_length_is_tokens_a_step_and_unknown_where_one_answer_does_not_tell() -> None:
    records = [answer("drafthouse", "none"), answer("drafthouse", "anpd", steps=4)]
    assert summarise(records)[1].acceptance_length == pytest.approx(11 / 4)
    records.append(replace(records[0], round=1))
    records.append(answer("drafthouse", "anpd", steps=None, round_=1))
    assert summarise(records)[1].acceptance_length is None


def test_answers_are_compared_with_the_same_engines_plain_ones() -> None:
    records = [
        answer("drafthouse", "none"),
        answer("drafthouse", "anpd"),
        replace(answer("peer", "none"), tokens=(5, 6, 7)),
        replace(answer("peer", "lookup"), tokens=(5, 6, 8)),
    ]
    assert [(item.equal, item.compared) for item in summarise(records)] == [(1, 1), (1, 1), (1, 1), (0, 1)]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([answer("peer", "lookup")], "peer was not measured without speculation"),
        (
            [answer("peer", "none"), answer("peer", "lookup", "2")],
            "peer lookup and peer none were not asked the same prompts",
        ),
        ([answer("peer", "none", count=1)], "peer none: no answer in math has more than one token"),
    ],
)
def test_records_that_cannot_be_compared_are_refused(records: list[PeerRecord], message: str) -> None:
    with pytest.raises(SummaryError, match=message):
        summarise(records)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = [answer("drafthouse", "none"), answer("peer", "lookup", steps=None)]
    for record in records:
        append_record(tmp_path / "records.jsonl", record)
    assert read_records(tmp_path / "records.jsonl") == records


def test_the_table_has_every_arm_and_the_best_of_each_engine_is_known() -> None:
    records = [
        answer("drafthouse", "none"),
        answer("drafthouse", "anpd", seconds=2.5),
        answer("llama.cpp", "none", steps=None),
        answer("llama.cpp", "ngram-mod", seconds=4.0, steps=None),
    ]
    summaries = summarise(records)
    assert [item.method for item in best_of_each(summaries)] == ["anpd", "none"]
    assert json.loads(json.dumps([item.as_dict() for item in summaries]))[1]["method"] == "anpd"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(peers_table(summaries))
    rows = [line for line in console.export_text().splitlines() if "ngram-mod" in line or "anpd" in line]
    assert "1.33" in rows[0] and "1.00" in rows[0]
    assert "0.67" in rows[1] and "not told" in rows[1]


def test_the_mean_of_categories_is_that_of_the_table_of_categories() -> None:
    records = [
        *(answer("drafthouse", "none", name, category=name) for name in ("math", "rag")),
        answer("drafthouse", "anpd", "math", category="math", seconds=2.5),
        answer("drafthouse", "anpd", "rag", category="rag"),
    ]
    summaries = summarise(records)
    found = summaries[1].by_category
    assert found["rag"] == 1 < found["math"]
    assert summaries[1].speedup == pytest.approx((1 + found["math"]) / 2)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(category_table(summaries))
    text = console.export_text()
    assert f"{found['math']:.2f}" in next(line for line in text.splitlines() if "math" in line)
    assert "drafthouse none" not in text


def test_an_answer_of_no_tokens_leaves_figures_that_are_numbers() -> None:
    (plain,) = summarise([answer("drafthouse", "none"), answer("drafthouse", "none", "2", count=0, steps=0)])
    assert (plain.acceptance_length, plain.interval, plain.compared) == (1, (1.0, 1.0), 2)


def test_acceptance_is_undefined_without_a_step() -> None:
    assert summarise([answer("drafthouse", "none", steps=0)])[0].acceptance_length is None
    assert summarise([answer("drafthouse", "none", steps=None)])[0].acceptance_length is None
