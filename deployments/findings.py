"""What a check before building found: by name, how bad it is, and what would be right."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked and is not as it should be, or that is worth knowing.

    Attributes:
        name: lower-case words with hyphens, stable from release to release.
        severity: `error`: the build or the server would fail or be wrong; `warning`: it may be slower or
            smaller than meant; `note`: arithmetic, or what could not be checked.
        what: what is wrong and where, with the key of the spec or the file.
        right: what would be right; empty for a note.
        reference: public thread, release or source that knows it; empty if the kit's own reasoning.
    """

    name: str
    severity: Severity
    what: str
    right: str = ""
    reference: str = ""
