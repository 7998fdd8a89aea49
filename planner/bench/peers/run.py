"""Asks every arm every prompt, alone or in batches, in alternation.

All programs are loaded first and idle while another works. For each group of prompts the arms take turns, beginning
with another one each time, so that what drifts on the machine hits all of them alike. An arm that cannot be started, or
does not answer its first batch, is left out and named; one that fails later ends the run, and the records up to there
stay.

The seed of a prompt follows from its place and the round, so all arms draw with the same one, in batches as alone.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from planner.bench.measure import rotated
from planner.bench.peers.arms import OURS, Arm
from planner.bench.peers.environments import Environment
from planner.bench.peers.process import PeerError, PeerProcess
from planner.bench.peers.records import PeerPrompt, PeerRecord, append_record, begin_records

_WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Started:
    """Arms that run, and what could not be started, with the reason."""

    running: list[PeerProcess] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def run_peers(
    arms: Sequence[Arm],
    environments: Mapping[str, Environment],
    prompts: Sequence[PeerPrompt],
    directory: Path,
    *,
    max_tokens: int,
    rounds: int,
    batch: int = 1,
    report: Callable[[str, float | None], None] = lambda line, share: None,
) -> Started:
    """Measure all arms; the records go to `records.jsonl` of a directory, the programs' logs beside them.

    Args:
        arms: what to compare.
        environments: by engine, where its program runs.
        prompts: asked in this order in every round.
        directory: emptied of earlier records.
        max_tokens: most tokens of an answer.
        rounds: how often each prompt is asked of each arm.
        batch: how many prompts are asked at once; the last ones may be fewer.
        report: gets what is done and the share that is done.

    Raises:
        PeerError: an engine fails, or ours does not start, or none does.
        ForeignDirectoryError: the directory holds something else.
    """
    records = begin_records(directory)
    with ExitStack() as stack:
        started = _start(stack, arms, environments, directory, batch, report)
        if not started.running:
            raise PeerError(
                f"nothing could be started: {'; '.join(started.missing.values()) or 'no engine is chosen'}"
            )
        groups = [prompts[first : first + batch] for first in range(0, len(prompts), batch)]
        done, all_ = 0, rounds * len(groups) * len(started.running)
        for number in range(rounds):
            for position, group in enumerate(groups):
                which = f"prompt {position + 1}" if batch == 1 else f"{batch} prompts, group {position + 1}"
                for process in rotated(started.running, number + position):
                    report(f"{process.arm.name}: {which} of {len(groups)}", done / all_)
                    seed = number * len(prompts) + position * batch
                    for record in _asked(process, group, number, max_tokens, seed):
                        append_record(records, record)
                    done += 1
    return started


def _start(
    stack: ExitStack,
    arms: Sequence[Arm],
    environments: Mapping[str, Environment],
    directory: Path,
    batch: int,
    report: Callable[[str, float | None], None],
) -> Started:
    started = Started()
    for arm in arms:
        report(f"loading {arm.name}", None)
        environment, log = environments[arm.engine], directory / f"{arm.name.replace(' ', '-')}.log"
        process = PeerProcess(arm, environment.python, log, environment.variables())
        try:
            versions = process.wait_until_ready()
            process.generate([[1, 2, 3]] * batch, _WARM_UP_TOKENS)
        except PeerError as error:
            process.close()
            if arm.engine == OURS:
                raise
            started.missing[arm.name] = str(error)
            continue
        stack.enter_context(process)
        started.running.append(process)
        started.versions[arm.engine] = versions
    return started


def _asked(
    process: PeerProcess, group: Sequence[PeerPrompt], number: int, max_tokens: int, seed: int
) -> list[PeerRecord]:
    answers = process.generate([prompt.tokens for prompt in group], max_tokens, seed=seed)
    return [
        PeerRecord(
            engine=process.arm.engine,
            method=process.arm.method,
            round=number,
            prompt=prompt.id,
            category=prompt.category,
            prompt_tokens=len(prompt.tokens),
            tokens=tuple(answer.tokens),
            seconds=answer.seconds,
            first_token_seconds=answer.first_token_seconds,
            steps=answer.steps,
            drafted=_as_tuple(answer.drafted),
            accepted=_as_tuple(answer.accepted),
            draft_tokens=answer.draft_tokens,
            draft_seconds=answer.draft_seconds,
            token_seconds=tuple(answer.token_seconds),
            group=group[0].id if len(group) > 1 else "",
        )
        for prompt, answer in zip(group, answers, strict=True)
    ]


def _as_tuple(counts: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if counts is None else tuple(counts)


def default_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
