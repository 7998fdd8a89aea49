"""`drafthouse plan`: from profiles to what to draft with, at which load, and what that will bring."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.checks import measured_in, tell_checked
from cli.common import (
    EVERY,
    SpecArgument,
    console,
    for_programs,
    progress,
    read_spec,
    refuse_plan,
    say,
    tokenized_prompts,
    told,
)
from cli.exports import accepted_counts, planned, require_method, told_to
from deployments.files.writing import replace_file, write_text
from deployments.findings import UnsupportedDeployment
from deployments.spec import DeploymentSpec, SpecError
from engine.control.errors import ProfileError
from engine.plan import Cell, Objective, Plan
from engine.request import SamplingParams
from loadtest.provenance import collect
from planner.plan.choose import Option, options
from planner.plan.plan import cells_at, make_plan
from planner.plan.predict import Traffic
from planner.plan.profiles import Profile, profile_of, profiles_beside
from planner.plan.section import as_yaml, speculation_section
from planner.plan.trees import one_tree
from planner.plan.words import answer, plan_table, tree_table
from planner.profile.cost import longest_request
from planner.profile.run import ProfileSettings

_PLANS = Path("runs/plan")


def plan(
    spec_path: SpecArgument,
    concurrency: Annotated[
        str | None, typer.Option(help="Users, as in 1,2,4; by default as many as were profiled.")
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a prompt, on average; by default those of the profile's."),
    ] = None,
    cached_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of a prompt's tokens, those that the service finds in its KV cache: of a document, a chat's history, "
            "a system prompt that came before.",
        ),
    ] = 0,
    output_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens of an answer, instead of loadtest.max_tokens.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL of prompts as they come, instead of --prompt-tokens.")
    ] = None,
    objective: Annotated[
        Literal["throughput", "latency", "goodput"],
        typer.Option(
            help="Tokens a second, latency of the slowest tenth, or tokens a second within --ttft and --tpot."
        ),
    ] = "throughput",
    ttft: Annotated[float | None, typer.Option(help="Goodput: most milliseconds to the first token.")] = None,
    tpot: Annotated[
        float | None, typer.Option(help="Goodput: most milliseconds for each one after it.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the answers; one that was profiled.")] = 0.0,
    into: Annotated[
        list[Path] | None,
        typer.Option(
            help="Spec of TensorRT-LLM or vLLM that is to draft so: print its section, and what its release is told."
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Directory of a load test: predict what it has measured, cell by cell, and say how far off that is."
        ),
    ] = None,
) -> None:
    """Say whether speculation pays, with what, by how much and how sure, from what was profiled on this machine."""
    with told() as stop:
        spec = read_spec(spec_path)
        refuse_plan(spec, "plan")
        elsewhere = [read_spec(path) for path in into or ()]
        described = concurrency, prompt_tokens, cached_tokens, output_tokens, prompts, into, ttft, tpot
        if check is not None and any(described):
            raise SpecError(
                "--check takes the load from the load test: nothing goes with it but --temperature"
            )
        measured = measured_in(check) if check is not None else []
        stop.kept = f"{_PLANS / spec.name} is as it was"
        aim = _objective(objective, ttft, tpot)
        SamplingParams(temperature=temperature)  # refuses what is none
        mine = profile_of(spec, spec_path)
        for theirs in elsewhere:
            require_method(theirs, mine.speculation["method"])
        others, left_out = profiles_beside(mine)
        for reason in left_out:
            say(f"left out: the profile of {reason}")
        if check is not None:
            with progress() as show:
                show("replaying what was profiled", None)
                known, compared = _known(mine, others, temperature)
            # How lengths are chosen is the spec's, which may have changed since its drafts were profiled.
            served = replace(mine, speculation=spec.speculation.model_dump())
            tell_checked([served, *compared[1:]], known, measured)
            return
        given = _load(spec, mine, concurrency, prompt_tokens, cached_tokens, output_tokens, prompts)
        with progress() as show:
            show("replaying what was profiled", None)
            try:
                known, compared = _known(mine, others, temperature)
                made = make_plan(spec.name, compared, known, given.loads, aim, temperature, report=show)
            except ProfileError as error:
                raise ProfileError(
                    f"the profile of {spec.name} does not tell: {error}; measure it with "
                    f"{_remedy(spec, spec_path, given, temperature)}"
                ) from None
        made = made.model_copy(update={"provenance": collect()})
        for line in _not_compared(known, cells_at(made, given.context)):
            say(line)
        _tell(made, mine, given.context, elsewhere)


def _known(
    mine: Profile, others: Sequence[Profile], temperature: float
) -> tuple[list[Option], list[Profile]]:
    """All options, and the profiles that they come from; those of others are left out where they tell nothing.

    Raises:
        ProfileError: the first profile does not tell.
    """
    known, compared = options([mine], temperature), [mine]
    if not known[0].predictor.knows_service:
        say(f"of the engine alone, since the profile of {mine.name} {_unserved(mine)}")
    for other in others:
        try:
            # What serving adds is not the drafter's.
            known += options([replace(other, serving=other.serving or mine.serving)], temperature)[1:]
            compared.append(other)
        except ProfileError as error:
            say(f"left out: the profile of {other.name}: {error}")
    return known, compared


def _unserved(profile: Profile) -> str:
    """Why a profile does not tell what serving adds, and what would measure it."""
    if not profile.serving:
        return "does not hold what serving adds: drafthouse profile without --no-served measures it"
    contexts = [Traffic.of(load).context for load in profile.serving]
    return (
        f"has its service behind {min(contexts):.0f} to {max(contexts):.0f} tokens and no steps there, so what serving "
        f"adds is not told: drafthouse profile with{_context_options(contexts)} measures both"
    )


def _context_options(contexts: Sequence[float]) -> str:
    """What makes `drafthouse profile` measure steps around all of these."""
    ends = {math.floor(min(contexts)), math.ceil(max(contexts))}
    return "".join(f" --context {end}" for end in sorted(ends))


@dataclass(frozen=True)
class _Load:
    """Concurrencies at the context that is asked about, and the context."""

    loads: list[Traffic]
    context: float


def _objective(
    kind: Literal["throughput", "latency", "goodput"], ttft: float | None, tpot: float | None
) -> Objective:
    limited = ttft is not None or tpot is not None
    if limited != (kind == "goodput"):
        raise SpecError(
            "--ttft and --tpot are limits of --objective goodput, which needs one of them or both"
        )
    for name, limit in (("--ttft", ttft), ("--tpot", tpot)):
        if limit is not None and not 0 < limit < math.inf:
            raise SpecError(f"{name} is {limit:g}; it must be a number of milliseconds above 0")
    return Objective(kind=kind, ttft_ms=ttft, tpot_ms=tpot)


def _load(
    spec: DeploymentSpec,
    profile: Profile,
    concurrency: str | None,
    prompt_tokens: int | None,
    cached_tokens: int,
    output_tokens: int | None,
    prompts: Path | None,
) -> _Load:
    if prompts is not None and prompt_tokens is not None:
        raise SpecError("give --prompt-tokens or --prompts, not both")
    output = output_tokens or max(2, spec.loadtest.max_tokens)
    length: float = prompt_tokens or profile.prompt_tokens
    if prompts is not None:
        found = tokenized_prompts(spec, prompts, EVERY, output)
        length = sum(map(len, found.values())) / len(found)
    if cached_tokens >= length:
        raise SpecError(
            f"--cached-tokens {cached_tokens} leaves nothing to read of prompts of {length:.0f} tokens; an answer "
            "begins with at least one that is read"
        )
    levels = _levels(concurrency) if concurrency else sorted({row["batch"] for row in profile.cost["verify"]})
    loads = [Traffic(level, length, output, cached_tokens) for level in levels]
    return _Load(loads, loads[0].context)


def _levels(text: str) -> list[int]:
    try:
        levels = sorted({int(part) for part in text.split(",")})
    except ValueError:
        levels = []
    if not levels or levels[0] < 1:
        raise SpecError(f"--concurrency is {text}; it must be numbers of users, as in 1,2,4")
    return levels


def _remedy(spec: DeploymentSpec, spec_path: Path, given: _Load, temperature: float) -> str:
    """The command that measures all that is asked, and what in the spec is in its way."""
    context, users = given.context, given.loads[-1].concurrency
    options = [_context_options([context])]
    options += [f" --batch {level}" for level in sorted({1, *(load.concurrency for load in given.loads)})]
    options += [f" --temperature {temperature:g}"] * (temperature not in ProfileSettings().temperatures)
    engine = spec.embedded
    needs = {
        "max_sequence_length": (engine.max_sequence_length, longest_request(1, math.ceil(context))),
        "max_batch_size": (engine.max_batch_size, users),
    }
    short = [f"engine.{key} {most}" for key, (has, most) in needs.items() if most > has]
    command = f"`drafthouse profile {spec_path}{''.join(options)}`"
    return f"{command}, which takes {' and '.join(short)} or more" if short else command


def _not_compared(known: Sequence[Option], cells: Sequence[Cell]) -> Iterator[str]:
    """What other deployments' profiles do not cover."""
    deployments = {option.candidate.deployment or "" for option in known} - {""}
    for cell in cells:
        missing = sorted(deployments - {each.candidate.deployment for each in cell.candidates})
        if missing:
            yield f"left out at a concurrency of {cell.concurrency}: {', '.join(missing)}, profiled for other loads"


def _tell(made: Plan, mine: Profile, context: float, elsewhere: Sequence[DeploymentSpec]) -> None:
    """Files, table, and the answer; then what other engines are told."""
    # Matplotlib takes a second to import.
    from planner.plan.plot import plot_plan

    folder, asked = _PLANS / made.deployment, cells_at(made, context)
    write_text(folder / "plan.json", made.model_dump_json(indent=1) + "\n")
    with replace_file(folder / "plan.png") as path:
        plot_plan(made, context, path)
    names = list(made.deployments)
    console.print(plan_table(made.cells, names))
    for name, deployment in made.deployments.items():
        if deployment.trees is not None:
            console.print(tree_table(deployment.trees, name))
    for cell in asked:
        say(answer(cell, made.objective, names))
    counts = list(
        accepted_counts(each for each in asked[0].candidates if each.candidate.deployment == mine.name)
    )
    if counts:
        say(
            "\nWhat AIConfigurator and AISimulate ask for (engine.nextn, engine.nextn_accepted), whatever the GPU:\n\n"
            + "\n".join(counts)
        )
    say("\nAs one method and a schedule, for the spec:\n")
    section = speculation_section(mine, asked)
    trees, levels = made.deployments[mine.name].trees, [cell.concurrency for cell in asked]
    tree = one_tree(trees, context, levels) if trees is not None else []
    if tree and "choices" in section:
        section["choices"] = [list(path) for path in tree]
    say(as_yaml(section))
    say(f"\nplan, figures and picture: {folder}")
    refused = []
    for other in elsewhere:
        try:
            text = told_to(planned(other, section, tree, levels))
        except (SpecError, UnsupportedDeployment) as error:
            refused.append(f"{other.name}: {error}")
        else:
            say(f"\n{other.name}, by costs and acceptance of {made.deployment} on this machine:\n\n{text}")
    for_programs(made.model_dump_json())
    if refused:
        raise SpecError("\n".join(refused))
