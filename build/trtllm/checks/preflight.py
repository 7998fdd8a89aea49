"""Pre-flight: everything that can be known to fail before hours of building, by name.

Example::

    checked = preflight(spec)
    if not checked.failed:
        steps = plan_steps(checked.resolved, spec_path)
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from build.triton.model_config import repository_place_findings
from build.triton.parameters import TEMPLATE_VALUE
from build.trtllm.checks.commands import command_findings
from build.trtllm.checks.existing import engine_findings, repository_findings
from build.trtllm.checks.memory import memory_findings
from build.trtllm.checks.models import model_findings
from build.trtllm.checks.parallelism import parallelism_findings
from build.trtllm.checks.paths import path_findings
from build.trtllm.checks.settings import setting_findings
from build.trtllm.checks.spelling import spelling_findings
from build.trtllm.engines.commands import build_steps, compile_findings
from build.trtllm.llm_api.arguments import free_form_findings
from build.trtllm.repository.assemble import trtllm_models
from build.trtllm.resolved import Resolved
from build.trtllm.support.constraints import constraint_findings
from build.trtllm.support.matrix import unchecked
from deployments.findings import Finding, findings_of
from deployments.spec import DeploymentSpec, SpecError

Stage = Literal["print", "build", "serve"]
_ORDER = ("error", "warning", "note")


@dataclass(frozen=True)
class Preflight:
    """The deployment with nothing left open (None where that failed), and the findings, the worst first."""

    resolved: Resolved | None
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether building or serving makes no sense."""
        return any(finding.severity == "error" for finding in self.findings)


def preflight(spec: DeploymentSpec, stage: Stage = "build") -> Preflight:
    """Check a deployment on TensorRT-LLM.

    Args:
        spec: the deployment.
        stage: what follows. `print`: nothing is read but the spec. `build`: models are there; wrong engines are
            warnings, since the build replaces them. `serve`: engines are there and must fit.
    """
    try:
        resolved = unchecked(spec)
    except SpecError as error:
        unresolved = list(findings_of(error))
        if stage != "print":
            unresolved += [*path_findings(spec), *parallelism_findings(spec)]
        return Preflight(None, tuple(unresolved))
    found = sorted(_findings(resolved, stage), key=lambda finding: _ORDER.index(finding.severity))
    return Preflight(resolved, tuple(found))


def _findings(resolved: Resolved, stage: Stage) -> Iterator[Finding]:
    unsupported = list(constraint_findings(resolved))
    yield from unsupported
    yield from setting_findings(resolved)
    yield from spelling_findings(resolved)
    if any(finding.severity == "error" for finding in unsupported):
        yield from _free_forms(resolved)
    else:
        yield from _generated(resolved)
    if stage == "print":
        return
    yield from path_findings(resolved.spec, resolved.runtime)
    yield from model_findings(resolved)
    yield from parallelism_findings(resolved.spec, resolved.support)
    yield from memory_findings(resolved)
    yield from repository_place_findings(resolved.spec)
    if stage == "serve":
        yield from engine_findings(resolved)
        return
    for finding in (*engine_findings(resolved), *repository_findings(resolved.spec.serving.repository)):
        if finding.name != "engine-missing":
            yield replace(finding, severity="warning", remedy="drafthouse build, which replaces it")


def _generated(resolved: Resolved) -> Iterator[Finding]:
    """What the generators cannot make of the deployment, and what is wrong with the commands that they make."""
    yield from _told(lambda: command_findings(resolved, build_steps(resolved)))
    yield from _told(lambda: _made(resolved))


def _free_forms(resolved: Resolved) -> Iterator[Finding]:
    """What of that holds for a deployment that the generators are not made for."""
    check = compile_findings if resolved.runtime == "engines" else free_form_findings
    yield from _told(lambda: check(resolved))
    models = _told(lambda: _made(resolved))
    yield from (finding for finding in models if finding.name == TEMPLATE_VALUE)


def _made(resolved: Resolved) -> Iterable[Finding]:
    trtllm_models(resolved)
    return ()


def _told(check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check, and what it raises."""
    try:
        yield from check()
    except SpecError as error:
        yield from findings_of(error)
