"""What the engine gives to speculators: whole outcomes, probes, the target itself, and time to catch up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from engine.attention_kernels import KernelName
from engine.engine import Engine
from engine.request import GenerationRequest, SamplingParams
from engine.runner import SequenceInput
from speculators.anpd import AnpdSpeculator
from speculators.base import Requirements, Speculator
from speculators.eagle.draft import EagleDrafter
from speculators.growth import Likeliest
from speculators.outcome import StepOutcome
from speculators.target_access import TargetInput
from speculators.tree import ROOT, TokenTree
from tests.drafters import VARIANT, TinyDrafters, layers_of, planted_prompts
from tests.engine.driving import Outcome, generate, make_engine, prompt_of, run, submit
from tests.engine.tables import VOCABULARY, TableDrafter, TableRunner, fusion
from tests.engine.toys import Prober, Switching, Windowed
from tests.runners import openvino_runner
from tests.tiny import KERNELS, NUM_BLOCKS, THREADS, TinyTargets

LAYERS = (2, 4, 5)
ROOM = {"max_sequence_length": 512}


def text_of(length: int) -> tuple[int, ...]:
    return tuple(token % VOCABULARY for token in prompt_of(length))


def requests_of() -> list[GenerationRequest]:
    """Greedy and sampled, with contexts of one block and of several."""
    return [
        GenerationRequest(text_of(length), 40, SamplingParams(0.8 * (number % 2), seed=number))
        for number, length in enumerate((3, 20, 70, 100, 33))
    ]


def eagle3() -> tuple[EagleDrafter, TableDrafter]:
    graph = TableDrafter()
    return EagleDrafter("eagle3", graph, fusion, Likeliest.chain(5), LAYERS), graph


def plain(requests: Sequence[GenerationRequest]) -> list[list[int]]:
    return [generate(TableRunner(), request, **ROOM).tokens for request in requests]


def test_probes_are_run_never_accepted_and_not_counted() -> None:
    prober, runner = Prober(VOCABULARY), TableRunner()
    requests = requests_of()
    engine = make_engine(runner, prober)
    outcomes = run(engine, requests)
    assert [outcome.tokens for outcome in outcomes] == plain(requests)
    assert all(node < each.tree.drafted for each in prober.outcomes for node in each.path)
    drafted = sum(each.tree.drafted for each in prober.outcomes)
    assert 0 < engine.statistics.drafted_tokens <= drafted
    assert (
        sum(outcome.last.metrics.total_draft_tokens for outcome in outcomes)
        == engine.statistics.drafted_tokens
    )
    assert engine.statistics.accepted_tokens > 5


def test_what_the_target_says_at_rejected_nodes_is_what_it_would_say_there() -> None:
    prober = Prober(VOCABULARY)
    (request,) = requests_of()[2:3]
    run(make_engine(TableRunner(), prober), [request])
    said = prober.said[1]
    assert len(said) > 90
    for context, tokens in said:
        alone = TableRunner()
        batch = SequenceInput(context, 0, range(8), is_prompt=True, logits_from=len(context) - 1)
        (row,) = alone.forward([batch])
        assert list(tokens) == np.argsort(-row, kind="stable")[:2].tolist()


def test_on_the_accepted_path_the_targets_own_token_is_the_one_that_was_emitted() -> None:
    prober = Prober(VOCABULARY)
    run(make_engine(TableRunner(), prober), requests_of())
    for each in prober.outcomes:
        if each.emitted and not each.ended:
            assert each.target_tokens is not None
            rows = [0, *(node + 1 for node in each.path)]
            assert each.target_tokens[rows, 0].tolist() == list(each.emitted)


@pytest.mark.parametrize("kernel", KERNELS)
def test_probes_leave_the_output_alone_on_real_kernels(kernel: KernelName, tiny_targets: TinyTargets) -> None:
    runner = tiny_targets.runner("llama", "int8", kernel)
    requests = [GenerationRequest(prompt_of(length), 40) for length in (5, 62, 90)]
    found = run(make_engine(runner, Prober(runner.vocab_size), max_sequence_length=200), requests)
    assert [outcome.tokens for outcome in found] == [generate(runner, each).tokens for each in requests]


def test_the_target_drafts_on_some_of_its_rows() -> None:
    runner, requests = TableRunner(), requests_of()
    engine = make_engine(runner, Windowed(4), adaptive_drafts=False)
    outcomes = run(engine, requests)
    assert [outcome.tokens for outcome in outcomes] == plain(requests)
    windows = [item for batch in runner.batches for item in batch if item.position is not None]
    apart = [item for item in windows if item.position != item.past]
    assert apart and all(len(item.blocks) <= 3 for item in windows)
    assert engine.statistics.accepted_tokens / engine.statistics.drafted_tokens > 0.4


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_window_of_a_real_target(kernel: KernelName, precision: str, tiny_targets: TinyTargets) -> None:
    """Where the window is the whole context it is always right, and elsewhere it changes nothing."""
    runner = tiny_targets.runner("llama", precision, kernel)
    short, long = GenerationRequest(prompt_of(20), 40), GenerationRequest(prompt_of(130), 40)
    found = []
    for requests in ([short], [short, long]):
        engine = make_engine(runner, Windowed(3), adaptive_drafts=False)
        outcomes = run(engine, requests)
        assert [each.tokens for each in outcomes] == [
            generate(runner, request).tokens for request in requests
        ]
        found.append((engine.statistics.accepted_tokens, engine.statistics.drafted_tokens))
    assert found[0][0] == found[0][1] > 20 and found[1] != found[0]


class Greedy(Windowed):
    """Asks the target for what it must not have."""

    def __init__(self, what: str) -> None:
        super().__init__(2)
        self._what = what

    def _input(self, request_id: int, draft: Sequence[int]) -> TargetInput:
        computed = self.target.computed(request_id)
        if self._what == "overwrites":
            return TargetInput(request_id, [1], computed - 1, computed - 1)
        if self._what == "too many":
            return TargetInput(request_id, [1] * 300, computed, computed)
        return TargetInput(request_id, [1], computed, computed, [99])

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        if self._what == "too early":
            self.target.run([TargetInput(request_id, [1], 1, 1)])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("overwrites", "row 19 of request 1 would be overwritten"),
        ("too many", "2 blocks have no row 64 for request 1"),
        ("elsewhere", r"request 1 has blocks 0 to 1, asked for \[99\]"),
        ("too early", "while they propose or catch up"),
    ],
)
def test_no_speculator_reaches_beyond_its_rows(what: str, message: str) -> None:
    engine = make_engine(TableRunner(), Greedy(what))
    submit(engine, GenerationRequest(text_of(20), 30))
    with pytest.raises((ValueError, RuntimeError), match=message):
        for _ in range(3):
            engine.step()


class Witness(AnpdSpeculator):
    """Keeps what it is told."""

    requirements = Requirements(hidden_layers=(-1,))

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[int, list[StepOutcome]] = {}
        self.rows: dict[int, int] = {}

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        super().observe(request_id, outcome)
        self.outcomes.setdefault(request_id, []).append(outcome)
        features = outcome.features((-1,))
        assert len(features) == len(outcome.kept) and features[:, 3].tolist() == [-1] * len(features)
        self.rows[request_id] = self.rows.get(request_id, 0) + len(features)


def test_every_token_is_told_once_and_the_last_step_too() -> None:
    witness, requests = Witness(), requests_of()
    outcomes = run(make_engine(TableRunner(hidden_layers=(-1,)), witness, prefill_chunk=16), requests)
    for identity, (request, outcome) in enumerate(zip(requests, outcomes, strict=True), start=1):
        told = witness.outcomes[identity]
        assert [token for each in told for token in each.emitted] == outcome.tokens
        assert [each.ended for each in told] == [False] * (len(told) - 1) + [True]
        assert witness.rows[identity] >= len(request.prompt) + len(outcome.tokens) - 1
        assert [each.reads_prompt for each in told] == sorted(
            (each.reads_prompt for each in told), reverse=True
        )


def test_hidden_states_that_the_runner_does_not_give_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need hidden states \[-1\]; the runner gives \(2,\)"):
        make_engine(TableRunner(hidden_layers=(2,)), Witness())


def test_a_request_changes_its_method_in_mid_stream() -> None:
    """Two speculators that are always loaded, each on for ten tokens and off for ten."""
    requests = requests_of()
    for keeps_up in ((), ("anpd", "eagle3")):
        eagle, _ = eagle3()
        policy = Switching([AnpdSpeculator(), eagle], lambda n: [("anpd", "eagle3")[n // 10 % 2]], keeps_up)
        engine = make_engine(TableRunner(hidden_layers=LAYERS), policy=policy, max_batch_size=3)
        outcomes = run(engine, requests)
        assert [outcome.tokens for outcome in outcomes] == plain(requests)
        assert {name for _, name in policy.asked} == {"anpd", "eagle3"}
        assert engine.statistics.accepted_tokens > 20


OFF, SHARE = 200, 48


def run_off(policy: Switching, prompt: tuple[int, ...]) -> tuple[Engine, Outcome, TableRunner]:
    runner = TableRunner(hidden_layers=LAYERS)
    engine = make_engine(
        runner, policy=policy, prefill_chunk=SHARE, idle_prefill_chunk=SHARE, max_batch_size=1, **ROOM
    )
    return engine, run(engine, [GenerationRequest(prompt, OFF + 100)])[0], runner


def drafts_of(runner: TableRunner) -> dict[int, Sequence[int]]:
    """What was verified, by position."""
    return {
        item.past: item.tokens
        for batch in runner.batches
        for item in batch
        if not item.is_prompt and len(item.tokens) > 1
    }


def test_a_drafter_that_was_off_catches_up_in_bounded_pieces() -> None:
    """Off for 200 tokens from the first of the prompt on; then its drafts are those of one that was never off."""
    prompt = text_of(70)
    eagle, graph = eagle3()
    off = Switching([eagle], lambda n: ["eagle3"] if n >= OFF else [])
    _, outcome, runner = run_off(off, prompt)
    assert outcome.tokens == generate(TableRunner(), GenerationRequest(prompt, OFF + 100), **ROOM).tokens
    reading = graph.calls[: graph.calls.index(min(graph.calls))]
    assert sum(reading) >= OFF + len(prompt) - 70
    assert max(graph.calls) <= 65 and len(reading) >= 5, (
        "no step reads more than its share, a draft its last rows"
    )
    drafts = drafts_of(runner)
    first = min(drafts) - len(prompt)
    assert first <= OFF + 7, "it catches up faster than the text grows"
    always, _ = eagle3()
    _, _, reference = run_off(
        Switching([always], lambda n: ["eagle3"] if n > first else [], ["eagle3"]), prompt
    )
    assert drafts_of(reference) == drafts and len(drafts) > 20


@pytest.mark.torch
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_real_drafter_that_was_off_drafts_as_one_that_never_was(
    precision: str, tiny_drafters: TinyDrafters, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, first = GenerationRequest(planted_prompts()[0], 230), OFF
    found = []
    for keeps_up in ((), ("eagle3",)):
        speculators = tiny_drafters.speculators("eagle3, chain", precision, planted=True, slots=1)
        runner = openvino_runner(
            tiny_drafters.targets.engine(VARIANT, precision),
            num_blocks=NUM_BLOCKS,
            threads=THREADS,
            hidden_layers=layers_of(speculators),
        )
        batches: list[Sequence[SequenceInput]] = []
        forward = runner.forward

        def watched(batch: Sequence[SequenceInput], forward=forward, batches=batches):  # type: ignore[no-untyped-def]
            batches.append(batch)
            return forward(batch)

        policy = Switching(speculators, lambda n, first=first: ["eagle3"] if n >= first else [], keeps_up)  # type: ignore[misc]
        engine = make_engine(
            runner, policy=policy, max_batch_size=1, idle_prefill_chunk=SHARE, prefill_chunk=SHARE
        )
        with monkeypatch.context() as patched:
            patched.setattr(runner, "forward", watched)
            tokens = run(engine, [request])[0].tokens
        assert tokens == generate(runner, request).tokens
        drafts = {
            part.past: list(part.tokens) for (part,) in batches if not part.is_prompt and len(part.tokens) > 1
        }
        first = min(drafts) - len(request.prompt) + 1
        found.append(drafts)
    assert found[0] == found[1] and len(found[0]) > 5
    assert first <= OFF + 7


class Careless(AnpdSpeculator):
    """Proposes one node more than it may, or a probe that it has not announced, or an unknown token."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault = fault

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        trees = {
            "node": TokenTree.chain([1] * (budgets[0] + 1)) if budgets else None,
            "probe": TokenTree((1,), (-1,), probes=1),
            "token": TokenTree.chain([VOCABULARY]),
        }
        tree = trees[self._fault]
        return [tree] * len(request_ids) if tree else []


@pytest.mark.parametrize("fault", ["node", "probe", "token"])
def test_what_the_runner_cannot_verify_is_refused(fault: str) -> None:
    engine = make_engine(TableRunner(), Careless(fault))
    submit(engine, GenerationRequest(text_of(5), 20))
    with pytest.raises(ValueError, match="nodes and 0 probes are allowed, with tokens below 48"):
        engine.step()
        engine.step()


class Deep(Prober):
    """Probes in a row, three levels deep."""

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [TokenTree((1, 2, 3), (ROOT, 0, 1), probes=3)] * len(request_ids)


def test_probes_behind_the_rows_of_their_request_are_refused() -> None:
    """Such a row would lie in the cache of another one."""
    for rows in (0, 1):
        prober = Deep(VOCABULARY)
        prober.requirements = replace(Prober.requirements, scratch_rows=rows)
        runner = TableRunner()
        engine = make_engine(runner, prober)
        submit(engine, GenerationRequest(text_of(20), 12))
        if rows:
            while engine.step():
                pass
        else:
            with pytest.raises(ValueError, match=r"and 3 probes are allowed, .* on 2 levels"):
                for _ in range(20):
                    engine.step()
        last = max(max(item.positions) for batch in runner.batches for item in batch)
        assert last == 32 - 1 + rows


class Weigher(Witness):
    """Wants to know what blocks get."""

    requirements = Requirements(hidden_layers=(-1,), block_weights=True)


@pytest.mark.parametrize("chunk", [3, 5, 16, 64])
def test_the_end_of_a_prompt_and_short_steps_are_weighed(chunk: int) -> None:
    for length in (1, 2, 3, 15, 16, 17, 18, 19, 33, 50, 97):
        weigher, runner = Weigher(), TableRunner(hidden_layers=(-1,))
        request = GenerationRequest(text_of(length), 20)
        (outcome,) = run(make_engine(runner, weigher, prefill_chunk=chunk), [request])
        assert outcome.tokens == plain([request])[0]
        parts = [item for batch in runner.batches for item in batch if item.is_prompt]
        assert sum(len(item.tokens) for item in parts) == length
        assert all(2 <= len(item.tokens) <= chunk for item in parts) or length == 1
        assert [item.weighed for item in parts] == [False] * (len(parts) - 1) + [True]
        assert len(parts[-1].tokens) <= 16
        told = [each.block_weights for each in weigher.outcomes[1]]
        assert [weights is None for weights in told] == [not each.emitted for each in weigher.outcomes[1]]


def test_nobody_weighs_what_nobody_asks_for() -> None:
    runner = TableRunner(hidden_layers=(-1,))
    run(make_engine(runner, Witness()), requests_of())
    assert not any(item.weighed for batch in runner.batches for item in batch)


def test_scratch_rows_are_allocated_with_the_context() -> None:
    class Scratch(AnpdSpeculator):
        requirements = Requirements(scratch_rows=40)

    engine: Engine = make_engine(TableRunner(), Scratch())
    (outcome,) = run(engine, [GenerationRequest(text_of(20), 12)])
    assert outcome.last.metrics.kv_new_blocks == 3  # 32 rows of its own, 40 to write to
    with pytest.raises(ValueError, match="its cache holds 88"):
        make_engine(TableRunner(num_blocks=4), Scratch(), max_sequence_length=89)


def test_speculators_keep_their_names_apart() -> None:
    """The draft of a request stands beside the engine's own speculators."""
    speculators: list[Speculator] = [AnpdSpeculator()]
    engine = make_engine(TableRunner(), speculators)
    expected = generate(TableRunner(), GenerationRequest(text_of(9), 10)).tokens
    given = submit(engine, GenerationRequest(text_of(9), 10, draft=tuple(expected[:4])))
    drafted = submit(engine, GenerationRequest(text_of(9), 10))
    while engine.step():
        pass
    assert (given.tokens, given.last.finish_reason) == (expected[:5], "verified")
    assert drafted.tokens == expected
    assert given.last.metrics.total_accepted_draft_tokens == 4
