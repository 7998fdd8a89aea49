"""Command line of the converters, for build plans that run inside NVIDIA's container.

    python3 -m build.converters medusa --drafter DIR --target DIR --output DIR --tp-size 2 --dtype bfloat16
    python3 -m build.converters restore medusa --checkpoint DIR --output DIR

It exits with 2 and one line on standard error when a drafter cannot be converted. argparse, since the container
has no typer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from build.converters.dispatch import FAMILIES, RESTORERS, convert_drafter, restore_drafter
from build.converters.eagle import TreeLimits
from build.converters.errors import ConversionError
from build.converters.medusa import MAX_DRAFT_LENGTH
from build.converters.redrafter import DRAFT_LENGTH, NUM_BEAMS
from speculators.formats.tensors import FLOAT_TYPES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one conversion; the exit status."""
    given = vars(_parser().parse_args(arguments))
    command = given.pop("command")
    try:
        if command == "restore":
            done = restore_drafter(given["family"], given["checkpoint"], given["output"])
        else:
            done = convert_drafter(command, **_settings(command, given))
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"converted: {done.directory} (layout {done.layout})")
    for note in done.notes:
        print(f"note: {note}")
    return 0


def _settings(family: str, given: dict[str, Any]) -> dict[str, Any]:
    if family == "eagle":
        given["limits"] = TreeLimits(
            given.pop("max_draft_length"),
            given.pop("num_eagle_layers"),
            given.pop("max_non_leaves_per_layer"),
        )
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m build.converters", description=__doc__.partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    families = {family: _family(commands, family) for family in FAMILIES}
    for family in ("medusa", "eagle", "redrafter"):
        _add_engine_options(families[family])
    _add_dtype(families["eagle3"])
    families["medusa"].add_argument("--num-medusa-heads", dest="num_heads", type=int, help="first heads only")
    _add_number(families["medusa"], "--max-draft-length", MAX_DRAFT_LENGTH, "nodes of the token tree")
    limits = TreeLimits()
    _add_number(families["eagle"], "--max-draft-length", limits.max_draft_length, "nodes of the token tree")
    _add_number(families["eagle"], "--num-eagle-layers", limits.depth, "depth of the token tree")
    _add_number(families["eagle"], "--max-non-leaves-per-layer", limits.max_non_leaves, "parents in a layer")
    _add_number(families["redrafter"], "--num-beams", NUM_BEAMS, "beams of the draft search")
    _add_number(families["redrafter"], "--draft-length", DRAFT_LENGTH, "drafted tokens in a beam")
    families["redrafter"].add_argument(
        "--sampling", dest="greedy_search", action="store_false", help="sample instead of the likeliest token"
    )
    restore = commands.add_parser(
        "restore", help="the drafter inside a TensorRT-LLM checkpoint, as published"
    )
    restore.add_argument("family", choices=list(RESTORERS))
    restore.add_argument("--checkpoint", type=Path, required=True)
    restore.add_argument("--output", type=Path, required=True)
    return parser


def _family(commands: Any, family: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        family, help=f"convert a published {family} drafter"
    )
    parser.add_argument("--drafter", type=Path, required=True, help="published checkpoint")
    parser.add_argument(
        "--target", type=Path, required=True, help="TensorRT-LLM checkpoint or Hugging Face model"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    return parser


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layout", choices=["checkpoint", "source"], default="checkpoint")
    parser.add_argument("--tp-size", type=int, help="must be that of the target's checkpoint")
    _add_dtype(parser)


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=list(FLOAT_TYPES), help="of the weights that are written")


def _add_number(parser: argparse.ArgumentParser, flag: str, default: int, what: str) -> None:
    parser.add_argument(flag, type=int, default=default, help=f"{what} (default {default})")


if __name__ == "__main__":
    sys.exit(main())
