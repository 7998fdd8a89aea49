"""Compiles and renders chat templates, in a process of its own whose memory and time are bounded.

A template is code from whoever made the model. Jinja's sandbox keeps it from files and from Python's attributes, but
not from `'a' * 2000000000`, which it computes while it compiles already, nor from loops within loops, and a Python
program cannot interrupt itself in the middle of either. So `client.rendering` runs this file, with Jinja and the
standard library alone, and ends it when it takes too long. Jobs come as lines of JSON on standard input, `{"source":
..., "context": ...}` with the context null to compile only; answers go to standard output, `{"text": ...}`, or
`{"error": ..., "line": ...}`.

The environment is the one that Transformers gives its templates (`apply_chat_template`): whitespace control, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that leaves text as it is, and the `generation` block.
"""

import json
import signal
import sys
from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks, who may go on
    sys.path[:] = json.loads(sys.argv[1])

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_COMPILED = 16
_MESSAGE = 300
"""Characters of an error that are told."""


def main(memory: int, longest: int, seconds: int) -> None:
    """Answer jobs until there are no more.

    Args:
        memory: bytes that templates may take.
        longest: characters of a text.
        seconds: of a job, after which this process ends, in case whoever asked has gone.
    """
    environment = _environment()
    compiled: OrderedDict[str, jinja2.Template] = OrderedDict()
    _bound(memory)
    for line in sys.stdin.buffer:
        signal.alarm(seconds)
        try:
            answer = _answer(environment, compiled, json.loads(line), longest)
        except MemoryError:
            answer = {"error": f"it takes more than {memory >> 20} MiB of memory"}
        except RecursionError:
            answer = {"error": "it is nested too deeply"}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
        signal.alarm(0)


def _answer(
    environment: ImmutableSandboxedEnvironment,
    compiled: OrderedDict[str, jinja2.Template],
    job: dict[str, Any],
    longest: int,
) -> dict[str, Any]:
    source, context = job["source"], job["context"]
    try:
        template = compiled.get(source)
        if template is None:
            template = compiled[source] = environment.from_string(source)
            if len(compiled) > _COMPILED:
                compiled.popitem(last=False)
        text = "" if context is None else template.render(context)
    except jinja2.TemplateSyntaxError as error:
        return {"error": _line(error.message or ""), "line": error.lineno}
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # whatever the template has done, it is its fault
        return {"error": _line(str(error) or type(error).__name__)}
    if len(text) > longest:
        return {"error": f"its text has {len(text)} characters; at most {longest} are taken"}
    return {"text": text}


def _line(message: str) -> str:
    """On one line, and nothing that a terminal would obey."""
    return "".join(one if one.isprintable() else " " for one in " ".join(message.split()))[:_MESSAGE]


def _bound(memory: int) -> None:
    """Bound this process's memory, where the system can."""
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bound = taken + memory if most == resource.RLIM_INFINITY else min(taken + memory, most)
    resource.setrlimit(resource.RLIMIT_AS, (bound, most))


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks what training learns; here just its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes for HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


if __name__ == "__main__":
    main(*map(int, sys.argv[2:]))
