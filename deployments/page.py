"""Every key of the deployment spec, from the schema: as text for a terminal, and as the page `deployments/README.md`.

Example::

    print(terminal_page("speculation.anpd", width=80))
"""

import difflib
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.needs import NEEDS, Needs
from deployments.spec import DeploymentSpec, SpecError

Schema = Mapping[str, Any]
_TAGS = ("method", "kind")
# All that the sections of no method of their own have.
_OF_THEMSELVES = {"method", "plan", "calibrate"}
_HEAD = """\
# Keys of a deployment spec

Written by `drafthouse spec --markdown`, from the schema in this directory. Unknown keys are errors; paths start at the
directory in which the command runs; a key that stands for others is a section of its own below.
"""


@dataclass(frozen=True)
class Key:
    """One key: how it is written, what it may be, what it is when it is left out, and what it means."""

    name: str
    value: str
    default: str
    description: str


@dataclass(frozen=True)
class Part:
    """A section of the spec: its path, what it is for, its own keys, and what its method needs."""

    path: str
    about: str
    keys: tuple[Key, ...]
    needs: Needs | None = None


def parts() -> tuple[Part, ...]:
    """All sections, in the order of the file."""
    return tuple(_sections("", DeploymentSpec.model_json_schema()))


def terminal_page(wanted: str | None = None, *, width: int = 80) -> str:
    """The page as plain text, or what begins with a path of it, such as `engine` or `speculation.anpd`.

    Raises:
        SpecError: there is no such path; names the nearest.
    """
    return "\n\n".join(_text(part, width) for part in _chosen(wanted))


def markdown_page() -> str:
    """The whole page."""
    found = parts()
    return "\n".join([_HEAD, *map(_markdown, found), _needs_table(found)])


def _sections(path: str, schema: Schema, whole: Schema | None = None) -> Iterator[Part]:
    whole = whole or schema
    definitions = whole.get("$defs", {})
    inner: list[tuple[str, Schema]] = []
    keys = []
    for name, item in schema["properties"].items():
        if name in _TAGS and "const" in item:
            continue
        required = name in schema.get("required", ())
        keys.append(_key(name, item, definitions, required=required))
        held = [definitions[reference] for reference in _references(item)]
        shared = _shared(held)
        if shared["properties"]:
            inner.append((name, shared))
        for section in held:
            rest = {
                key: value for key, value in section["properties"].items() if key not in shared["properties"]
            }
            inner.append((".".join(filter(None, (name, _tag(section)))), {**section, "properties": rest}))
    method = _tag(schema) if "method" in schema["properties"] else None
    about = " ".join(str(schema.get("description", "")).split("\n\n")[0].split())
    yield Part(path, about, tuple(keys), NEEDS.get(method or ""))
    for name, section in inner:
        yield from _sections(".".join(filter(None, (path, name))), section, whole)


def _shared(sections: Sequence[Schema]) -> Schema:
    """The keys that all methods have but `none` and `plan`, as a section."""
    methods = [
        section["properties"] for section in sections if not section["properties"].keys() <= _OF_THEMSELVES
    ]
    first, *others = methods or [{}]
    same = {
        key: item for key, item in first.items() if others and all(other.get(key) == item for other in others)
    }
    about = "Keys of every method but none and plan; what a method has of its own follows, by its name."
    return {"description": about, "properties": same}


def _tag(section: Schema) -> str | None:
    """The value of the key by which this section is chosen among others."""
    properties = section.get("properties", {})
    return next((properties[key]["const"] for key in _TAGS if "const" in properties.get(key, {})), None)


def _references(item: Schema) -> Iterator[str]:
    """Names of the sections that a key holds."""
    if "$ref" in item:
        yield item["$ref"].rpartition("/")[2]
    for part in (*item.get("anyOf", ()), *item.get("oneOf", ())):
        yield from _references(part)


def _key(name: str, item: Schema, definitions: Schema, *, required: bool) -> Key:
    references = list(_references(item))
    tags = [tag for reference in references if (tag := _tag(definitions[reference]))]
    if references:
        value = (
            f"section, by {'method' if 'none' in tags else 'kind'}: {', '.join(tags)}" if tags else "section"
        )
    else:
        value = _value(item)
    default = "required" if required else _default(item, nested=bool(references))
    told = item.get("description")
    if told is None and references:
        told = "see below" if tags else definitions[references[0]].get("description", "")
    return Key(name, value, default, " ".join(str(told or "").split()))


def _default(item: Schema, *, nested: bool) -> str:
    default = item.get("default")
    if nested:
        return "its defaults" if isinstance(default, dict) else "none"
    return default if isinstance(default, str) else "none" if default is None else json.dumps(default)


def _value(item: Schema) -> str:
    """What may stand there, in words."""
    options = [
        part for part in (*item.get("anyOf", ()), *item.get("oneOf", ())) if part.get("type") != "null"
    ]
    if options:
        return "; or ".join(dict.fromkeys(map(_value, options)))
    if "enum" in item:
        return ", ".join(map(str, item["enum"]))
    if "const" in item:
        return str(item["const"])
    kind = item.get("type")
    if kind == "array":
        inner = item.get("items") or (item.get("prefixItems") or [{}])[0]
        exact = item.get("minItems") == item.get("maxItems") and item.get("minItems")
        count = f"{exact} of: " if exact else "list of: "
        return f"{count}{_value(inner)}"
    if kind == "object":
        inner = item.get("additionalProperties")
        return f"mapping to: {_value(inner)}" if isinstance(inner, dict) else "mapping"
    if kind in ("integer", "number"):
        return f"{'whole number' if kind == 'integer' else 'number'}{_range(item)}"
    return {"boolean": "true or false", "string": "path" if item.get("format") == "path" else "text"}.get(
        str(kind), "anything"
    )


def _range(item: Schema) -> str:
    low = item.get("minimum", item.get("exclusiveMinimum"))
    high = item.get("maximum", item.get("exclusiveMaximum"))
    if isinstance(low, int | float) and "exclusiveMinimum" in item and item.get("type") == "integer":
        low = low + 1
    elif "exclusiveMinimum" in item:
        return f", above {low:g}" + (f", below {high:g}" if high is not None else "")
    if low is not None and high is not None:
        return f", {low:g} to {high:g}"
    return f", {low:g} or more" if low is not None else f", at most {high:g}" if high is not None else ""


def _chosen(wanted: str | None) -> Sequence[Part]:
    found = parts()
    if wanted is None:
        return found
    chosen = [part for part in found if part.path == wanted or part.path.startswith(f"{wanted}.")]
    if not chosen:
        near = difflib.get_close_matches(wanted, [part.path for part in found], n=1, cutoff=0.4)
        hint = f", did you mean {near[0]}?" if near else ""
        raise SpecError(f"the spec has no section {wanted}{hint}")
    return chosen


def _text(part: Part, width: int) -> str:
    lines = [f"{part.path or 'the file'}: {part.about}"]
    if part.needs is not None:
        lines += [f"runs on: {part.needs.runs_on}", f"needs: {part.needs.weights}"]
        lines += [f"training: {part.needs.training}"] if part.needs.training else []
        lines += [f"memory: {part.needs.memory}"] if part.needs.memory else []
    told = [textwrap.fill(line, width, subsequent_indent="    ") for line in lines]
    for key in part.keys:
        default = key.default if key.default == "required" else f"default: {key.default}"
        told.append(textwrap.fill(f"  {key.name}: {key.value} ({default})", width, subsequent_indent=" " * 6))
        if key.description:
            told.append(
                textwrap.fill(key.description, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
            )
    return "\n".join(told)


def _markdown(part: Part) -> str:
    title = f"## `{part.path}`\n\n" if part.path else ""
    lines = [f"{title}{part.about}\n"]
    if part.keys:
        lines += ["| key | value | default | what it is |", "|---|---|---|---|"]
        lines += [
            f"| `{key.name}` | {_cell(key.value)} | {_cell(key.default)} | {_cell(key.description)} |"
            for key in part.keys
        ]
    return "\n".join([*lines, ""])


def _needs_table(found: Sequence[Part]) -> str:
    lines = [
        "## What a method needs\n",
        "Times and sizes of what was trained here are those of `speculators/weights`: SmolLM2-135M on two CPU cores.\n",
        "| method | runs on | what has to be there | training: data and time | memory beside the target |",
        "|---|---|---|---|---|",
    ]
    for part in found:
        if part.needs is not None:
            needs = part.needs
            method = part.path.rpartition(".")[2]
            training, memory = needs.training or "none", needs.memory or "none"
            lines.append(f"| `{method}` | {needs.runs_on} | {needs.weights} | {training} | {memory} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
