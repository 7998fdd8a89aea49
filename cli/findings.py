"""Findings for people, and the pre-flight of deployments on the embedded engine."""

from collections.abc import Sequence

from rich.text import Text

from build.embedded_checks import embedded_findings
from build.embedded_models import model_findings
from cli.common import errors, folded
from cli.machine import server_findings
from deployments.findings import Finding
from deployments.spec import DeploymentSpec

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}
_ORDER = tuple(_COLOURS)


def tell(findings: Sequence[Finding]) -> None:
    """Print findings, the worst first: what and where, and below it what would be right."""
    for item in sorted(findings, key=lambda finding: _ORDER.index(finding.severity)):
        errors.print(Text(f"{item.severity}: {item.name}", _COLOURS[item.severity]))
        right, reference = item.remedy and f"right: {item.remedy}", item.reference and f"({item.reference})"
        for text in filter(None, (item.reason, right, reference)):
            errors.print(folded(text, indent=2), markup=False, soft_wrap=True)


def check_settings(spec: DeploymentSpec) -> None:
    """End the command if the embedded engine cannot do what the spec says; no file is read."""
    end_on_errors([*embedded_findings(spec)])


def check_embedded(spec: DeploymentSpec, *, everything: bool = False) -> None:
    """End the command on whatever building or serving would refuse; `everything` tells notes and warnings, too."""
    found = [*embedded_findings(spec), *model_findings(spec)]
    if everything:
        found += server_findings(spec)
    end_on_errors([item for item in found if everything or item.severity == "error"])


def end_on_errors(findings: Sequence[Finding]) -> None:
    """Tell findings, and end the command if there is an error among them."""
    tell(findings)
    if any(item.severity == "error" for item in findings):
        raise SystemExit(2)
