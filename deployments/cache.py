"""Where files that were fetched are kept from one command to the next."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """`$DRAFTHOUSE_CACHE`, or `~/.cache/drafthouse`."""
    chosen = os.environ.get("DRAFTHOUSE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "drafthouse"
