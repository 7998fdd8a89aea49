"""Whether a path of the spec is meant as one of this machine or as a model on the Hugging Face hub, and what it may be.

The LLM API takes both. `organisation/name` is a hub id, unless something here says otherwise: it exists, or the folder
that it would lie in does.
"""

import difflib
import re
from collections.abc import Collection
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Where the kit and its examples keep things; no organisation on the hub is meant.
_OURS = ("models", "runs")


def is_hub_id(path: Path) -> bool:
    """Whether a path is a name on the hub."""
    if path.exists() or _HUB_ID.fullmatch(str(path)) is None:
        return False
    return path.parts[0] not in _OURS and not path.parent.exists()


def nearest(path: Path, others: Collection[Path] = ()) -> Path | None:
    """What is there of a similar name, in the last folder of the path that exists, if that is none of the others."""
    known, missing = path.parent, [path.name]
    while not known.is_dir() and known != known.parent:
        missing.insert(0, known.name)
        known = known.parent
    if not known.is_dir():
        return None
    names = [entry.name for entry in known.iterdir() if entry.is_dir()]
    for name in difflib.get_close_matches(missing[0], names, n=3):
        found = known.joinpath(name, *missing[1:])
        if found.exists() and found not in others:
            return found
        if len(missing) > 1 and (deeper := nearest(found, others)):
            return deeper
    return None


def suggestion(path: Path, others: Collection[Path] = ()) -> str:
    """`did you mean ...?` behind a path that is missing, or nothing; the others are meant by other keys."""
    near = nearest(path, others)
    return f", did you mean {near}?" if near else ""
