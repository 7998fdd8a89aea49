"""What a check of a deployment found: by name, how bad it is, and what would be right."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from deployments.spec import SpecError

T = TypeVar("T")
Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked and is not as it should be, or that is worth knowing.

    Attributes:
        name: lower-case words with hyphens, stable from release to release.
        severity: `error`: the build or the server would fail or be wrong; `warning`: it may be slower or
            smaller than meant; `note`: arithmetic, or what could not be checked.
        reason: what is wrong and where, with the key of the spec or the file.
        remedy: what would be right, or the nearest that works; empty for a note.
        reference: public thread, release or source that knows it; empty if the kit's own reasoning.
    """

    name: str
    severity: Severity
    reason: str
    remedy: str = ""
    reference: str = ""

    def __str__(self) -> str:
        return f"{self.reason}; nearest that works: {self.remedy}" if self.remedy else self.reason


@dataclass(frozen=True)
class Unsupported:
    """Why an engine does not have a method or a setting, and the nearest that it has, as a change of the spec."""

    reason: str
    remedy: str


PLANNED = Unsupported(
    "does not serve plans", "engine.kind: embedded, or the section that `drafthouse plan` prints for it"
)
MEASURED = Unsupported(
    "does not weigh drafts against their time",
    "engine.kind: embedded, or draft_policy: scheduled with a draft_length_schedule",
)


class UnsupportedDeployment(SpecError):
    """The engine cannot do what the spec asks for; nothing has been built.

    Attributes:
        findings: every error that was found.
    """

    def __init__(self, *findings: Finding) -> None:
        super().__init__("\n".join(map(str, findings)))
        self.findings = findings


def require_none(findings: Iterable[Finding]) -> None:
    """Let warnings and notes pass.

    Raises:
        UnsupportedDeployment: there are errors among the findings; it has all of them.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise UnsupportedDeployment(*errors)


def findings_of(error: SpecError) -> tuple[Finding, ...]:
    """What an error says, as findings."""
    if isinstance(error, UnsupportedDeployment):
        return error.findings
    return (Finding("spec", "error", str(error)),)


def make_all(parts: Iterable[Callable[[], T]]) -> list[T]:
    """Make all parts, or find what is wrong with each of them.

    Raises:
        UnsupportedDeployment: with the findings of all parts, once each.
    """
    made: list[T] = []
    found: dict[Finding, None] = {}
    for make in parts:
        try:
            made.append(make())
        except SpecError as error:
            found |= dict.fromkeys(findings_of(error))
    require_none(found)
    return made
