"""Stop words in the engine: the text before them is the output, with or without drafts, wherever steps end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.compiled_runner import CompiledRunner
from engine.engine import Engine
from engine.request import GenerationRequest, SamplingParams
from engine.serving.text import TextCodec
from engine.stopping import StopWords
from speculators.base import Speculator
from speculators.registry import create
from tests.engine.driving import (
    VOCABULARY,
    BranchingOracle,
    Outcome,
    generate,
    make_engine,
    plain,
    prompt_of,
    run,
    submit,
)
from tests.engine.test_engine_counters import check_engine
from tests.speculators.adversaries import OracleDrafter
from tests.tiny import TinyTargets

REQUEST = GenerationRequest(prompt_of(9), 60, SamplingParams(temperature=1.0, seed=5), return_log_probs=True)
SPECULATORS = ("none", "anpd", "chains of 5", "trees")


@pytest.fixture
def runner(tiny_targets: TinyTargets) -> CompiledRunner:
    return tiny_targets.runner("llama", "fp32")


@pytest.fixture
def codec(tiny_targets: TinyTargets) -> TextCodec:
    return TextCodec(tiny_targets.source("llama"))


def speculator_of(name: str, known: list[int]) -> Speculator:
    return {
        "none": lambda: create("none"),
        "anpd": lambda: create("anpd"),
        "chains of 5": lambda: OracleDrafter({REQUEST.prompt: known}, 5, 0, VOCABULARY),
        "trees": lambda: BranchingOracle({REQUEST.prompt: known}, 12),
    }[name]()  # type: ignore[no-any-return]


def text_of(codec: TextCodec, outcome: Outcome) -> str:
    """What a client reads: the chunks of a stream, the last one cut."""
    text, given = "", 0
    for event in outcome.events:
        last = event.finish_reason is not None
        chunk = codec.decode_next(outcome.tokens[:given], event.tokens, final=last)
        text += chunk[: len(chunk) - event.text_cut]
        given += len(event.tokens)
    return text


def words_in(text: str) -> list[str]:
    """Words that begin and end anywhere in a text, each at its first place."""
    spans = [(begin, begin + length) for begin in range(0, len(text) - 6, 5) for length in (1, 2, 5)]
    return [text[begin:end] for begin, end in spans if text.index(text[begin:end]) == begin]


@pytest.mark.parametrize("name", SPECULATORS)
def test_the_output_is_the_text_before_the_word(name: str, runner: CompiledRunner, codec: TextCodec) -> None:
    full = generate(runner, REQUEST)
    whole = codec.decode(full.tokens)
    words = words_in(whole)
    assert len(words) > 12
    for word in words:
        request = replace(REQUEST, stop_words=StopWords(["\x00\x00absent", word], codec))
        engine = make_engine(runner, speculator_of(name, full.tokens))
        (outcome,) = run(engine, [request])
        assert text_of(codec, outcome) == whole[: whole.index(word)]
        assert outcome.last.finish_reason == "stop"
        kept = codec.decode(outcome.tokens)
        assert kept.startswith(text_of(codec, outcome))
        assert outcome.tokens == full.tokens[: len(outcome.tokens)]
        assert outcome.log_probs == full.log_probs[: len(outcome.tokens)]
        check_counters(engine, outcome)


def check_counters(engine: Engine, outcome: Outcome) -> None:
    """What was counted is what was given out."""
    metrics = outcome.last.metrics
    assert metrics.num_output_tokens == len(outcome.tokens)
    assert metrics.num_output_tokens - metrics.total_accepted_draft_tokens in (
        metrics.steps,
        metrics.steps - 1,
    )
    check_engine(engine, [outcome])


@pytest.mark.parametrize("name", SPECULATORS)
def test_the_engine_stops_where_the_word_is_complete(
    name: str, runner: CompiledRunner, codec: TextCodec
) -> None:
    full = generate(runner, REQUEST)
    whole = codec.decode(full.tokens)
    word = next(word for word in words_in(whole) if len(word) == 5 and whole.index(word) > 20)
    needed = next(n for n in range(60) if word in codec.decode(full.tokens[:n]))
    engine = make_engine(runner, speculator_of(name, full.tokens))
    run(engine, [replace(REQUEST, stop_words=StopWords([word], codec))])
    assert engine.statistics.steps <= needed
    assert engine.statistics.used_blocks == 0


def test_nothing_of_a_word_is_given_out_while_it_may_still_complete(
    runner: CompiledRunner, codec: TextCodec
) -> None:
    full = generate(runner, REQUEST)
    whole = codec.decode(full.tokens)
    begin = next(n for n in range(20, 60) if whole.index(whole[n : n + 6]) == n)
    word = whole[begin : begin + 6]
    for words in ([word], [word + "\x00", word[:5] + "\x00"]):
        engine = make_engine(runner)
        outcome = submit(engine, replace(REQUEST, stop_words=StopWords(words, codec)))
        while not outcome.finished:
            engine.step()
            text = codec.decode(outcome.tokens)
            if not outcome.finished and len(text) > begin:
                # The word has turned out to be another text.
                assert len(codec.decode(full.tokens[: engine.statistics.steps])) >= begin + 6
        expected = whole if words != [word] else whole[:begin]
        assert text_of(codec, outcome) == expected


def test_what_may_become_a_word_is_text_if_the_output_ends_before(
    runner: CompiledRunner, codec: TextCodec
) -> None:
    full = generate(runner, REQUEST)
    for most in (1, 2, 9, 30):
        whole = codec.decode(full.tokens[:most])
        words = StopWords([whole[-1:] + "\x00", whole[-3:] + "\x00", whole + "\x00"], codec)
        for changes in ({"max_tokens": most}, {"end_ids": frozenset({full.tokens[most]})}):
            if full.tokens.index(full.tokens[most]) < most:
                continue
            outcome = generate(runner, replace(REQUEST, stop_words=words, **changes))  # type: ignore[arg-type]
            assert outcome.tokens == full.tokens[:most]
            assert text_of(codec, outcome) == whole
            assert outcome.last.finish_reason == ("length" if "max_tokens" in changes else "stop")


def test_an_output_that_begins_with_a_stop_word_is_empty(runner: CompiledRunner, codec: TextCodec) -> None:
    whole = codec.decode(plain(runner, REQUEST))
    engine = make_engine(runner)
    (outcome,) = run(engine, [replace(REQUEST, stop_words=StopWords([whole[:7]], codec))])
    assert (outcome.tokens, outcome.log_probs, outcome.last.finish_reason) == ([], [], "stop")
    assert (outcome.last.metrics.steps, engine.statistics.emitted_tokens) == (0, 0)
    assert outcome.last.metrics.first_token_ns == 0


def test_a_word_may_begin_in_the_output_of_an_earlier_call(runner: CompiledRunner, codec: TextCodec) -> None:
    full = plain(runner, REQUEST)
    whole = codec.decode(full)
    for done in (3, 10, 17):
        place = len(codec.decode(full[:done])) - 2
        word = whole[place : place + 5]
        rest = replace(
            REQUEST,
            prompt=(*REQUEST.prompt, *full[:done]),
            continued=done,
            max_tokens=60 - done,
            stop_words=StopWords([word], codec),
        )
        outcome = generate(runner, rest)
        assert outcome.last.finish_reason == "stop"
        if whole.index(word) == place:
            assert outcome.tokens == []


def test_a_cancelled_request_counts_what_it_has_given_out(runner: CompiledRunner, codec: TextCodec) -> None:
    whole = codec.decode(plain(runner, REQUEST))
    engine = make_engine(runner)
    outcome = submit(engine, replace(REQUEST, stop_words=StopWords([whole[6:40] + "\x00"], codec)))
    for _ in range(12):
        engine.step()
    assert 0 < len(outcome.tokens) < 12
    engine.cancel(1)
    check_engine(engine, [outcome])
    assert outcome.last.metrics.num_output_tokens == len(outcome.tokens)


def test_words_of_several_requests_are_their_own(runner: CompiledRunner, codec: TextCodec) -> None:
    requests = [replace(REQUEST, prompt=prompt_of(length), max_tokens=40) for length in (5, 33, 64, 7)]
    alone = [generate(runner, request) for request in requests]
    texts = [codec.decode(outcome.tokens) for outcome in alone]
    watched = [
        replace(request, stop_words=StopWords([text[12:15]], codec) if place % 2 else None)
        for place, (request, text) in enumerate(zip(requests, texts, strict=True))
    ]
    outcomes = run(make_engine(runner, create("anpd"), max_batch_size=4), watched)
    for place, (outcome, text) in enumerate(zip(outcomes, texts, strict=True)):
        assert text_of(codec, outcome) == (text[: text.index(text[12:15])] if place % 2 else text)


def test_stop_sequences_of_tokens_are_part_of_the_output(runner: CompiledRunner, codec: TextCodec) -> None:
    """Many of them cost a step of an automaton a token, too."""
    full = plain(runner, REQUEST)
    random = np.random.default_rng(1)
    absent = tuple(tuple(random.integers(0, VOCABULARY, 6).tolist()) for _ in range(1000))
    request = replace(REQUEST, stop_sequences=(*absent, tuple(full[20:23])))
    outcome = generate(runner, request)
    assert outcome.tokens == full[:23]
