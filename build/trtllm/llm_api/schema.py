"""Validation of the LLM API's arguments by the release's JSON Schema.

Every class behind them forbids unknown keys, so one wrong spelling keeps the server from starting. Releases from
1.4.0rc0 on carry their schema (`tensorrt_llm/schemas/`); where that release is installed, its own file is used.
Otherwise it is the restatement in `schemas/`, whose `$comment` names the source.
"""

import difflib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from build.trtllm.installed import installed_release
from build.trtllm.releases import LineName, ReleaseLine, line_of_version
from deployments.findings import Finding, require_none

SCHEMAS = Path(__file__).parent / "schemas"
OFFICIAL = "tensorrt_llm/schemas/trtllm-serve-config.schema.json"


def schema_path(line: ReleaseLine) -> Path:
    """The installed release's own schema if there is one and the release is of this line, else the kit's."""
    release = installed_release()
    if release is not None and line_of_version(release.version) is line:
        official = release.root / OFFICIAL
        if official.is_file():
            return official
    return SCHEMAS / line.schema


@functools.cache
def foreign_keys(line: LineName) -> Mapping[str, str]:
    """Keys of `speculative_config` that belong to other releases, and what this line has instead."""
    content: Mapping[str, Mapping[str, str]] = json.loads(
        (SCHEMAS / "foreign_keys.json").read_text(encoding="utf-8")
    )
    return content[line]


def validate(
    arguments: Mapping[str, Any], line: ReleaseLine, renamed: Mapping[str, str] | None = None
) -> None:
    """Check arguments of `LLM()`; what of, as for `schema_findings`.

    Raises:
        UnsupportedDeployment: with all findings.
    """
    require_none(schema_findings(arguments, line, renamed))


def schema_findings(
    arguments: Mapping[str, Any], line: ReleaseLine, renamed: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Every key that is wrong, what is wrong with it, and the nearest right key, for one release line.

    Args:
        arguments: of `LLM()`, as they stand in the YAML.
        line: the release line.
        renamed: keys of `speculative_config` that the release which will run spells otherwise than the line's newest,
            newest spelling first.
    """
    path = schema_path(line)
    schema = json.loads(path.read_text(encoding="utf-8"))
    if path == SCHEMAS / line.schema:
        _rename(schema, renamed or {})
    document = json.loads(json.dumps(arguments))  # as JSON has it: keys are strings, tuples are lists
    problems = list(_unknown_decoding_type(document, schema))
    if not problems:
        errors = Draft202012Validator(schema).iter_errors(document)
        problems = sorted({problem for error in errors for problem in _explain(error, line)})
    for problem in problems:
        yield Finding("spec", "error", f"the LLM API of line {line.name} ({path.name}) refuses: {problem}")


def _rename(schema: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename properties of every class of the schema; a renamed number has another range, so any is taken."""
    for definition in schema["$defs"].values():
        properties = definition.get("properties", {})
        for new, old in names.items():
            if properties.pop(new, None) is not None:
                properties[old] = {"type": ["number", "null"], "minimum": 0}


def _unknown_decoding_type(document: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """A `decoding_type` that is missing or none of the schema's, which no alternative would say clearly."""
    config = document.get("speculative_config")
    if not isinstance(config, dict):
        return
    known = sorted(_decoding_types(schema["properties"].get("speculative_config", {}), schema))
    given = config.get("decoding_type")
    if known and given not in known:
        near = difflib.get_close_matches(str(given), known, n=1, cutoff=0.5)
        hint = f", did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        yield f"speculative_config.decoding_type: {given!r} is not known{hint}"


def _decoding_types(node: Any, schema: dict[str, Any]) -> Iterator[str]:
    """Names of the alternatives that a schema node refers to, through anyOf and oneOf."""
    for option in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        if "$ref" in option:
            definition = schema["$defs"][option["$ref"].rsplit("/", 1)[1]]
            yield definition["properties"]["decoding_type"]["const"]
        yield from _decoding_types(option, schema)


def _explain(error: ValidationError, line: ReleaseLine) -> Iterator[str]:
    """One sentence a wrong key; of alternatives, the one whose `decoding_type` was meant."""
    if error.context:
        branches = _branches(error)
        meant = [errors for errors in branches if not any(map(_not_meant, errors))]
        for one in min(meant or branches, key=len):
            yield from _explain(one, line)
        return
    where = ".".join(map(str, error.absolute_path))
    if error.validator != "additionalProperties":
        yield f"{where or 'the document'}: {error.message}"
        return
    known = error.schema["properties"]
    for key in sorted(set(error.instance) - set(known)):
        full = f"{where}.{key}" if where else key
        if where == "speculative_config" and key in foreign_keys(line.name):
            yield f"{full}: not in this line, which has {foreign_keys(line.name)[key]}"
        else:
            near = difflib.get_close_matches(key, known, n=1)
            yield f"{full}: unknown key" + (f", did you mean {near[0]}?" if near else "")


def _branches(error: ValidationError) -> list[list[ValidationError]]:
    """The errors below anyOf or oneOf, by alternative."""
    branches: dict[Any, list[ValidationError]] = {}
    for one in error.context or ():
        branches.setdefault(one.relative_schema_path[0], []).append(one)
    return list(branches.values())


def _not_meant(error: ValidationError) -> bool:
    """Whether an alternative was not meant: another decoding_type, or null."""
    if error.validator == "type" and error.validator_value == "null":
        return True
    if error.context:
        return all(any(map(_not_meant, errors)) for errors in _branches(error))
    return error.validator == "const" and "decoding_type" in error.absolute_path
