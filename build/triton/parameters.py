"""Parameters of the Triton models in front of TensorRT-LLM: what the kit sets, and what the spec overrides.

The contract (`model_repo/contract.json`) lists every parameter of NVIDIA's models with the form of its values, and
the variables of their templates that are no parameters but fields of `config.pbtxt` (batch size, queue, types). The
spec reaches all of them under `engine.triton_parameters.MODEL.NAME`. A parameter that nobody sets is left out, which
the C++ backend reads as "not specified"; it would take an unfilled `${...}` for the same and warn. For the few that it
reads without a fallback (`READ_UNGUARDED`) an empty value says so instead.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from build.triton.model_config import contract
from deployments.findings import Finding, require_none

READ_UNGUARDED = ("tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend")
"""Parameters that a `tensorrt_llm` model must have even if it uses none of them.

`ModelState::GetParameter` throws where a parameter is absent. Everywhere else the backend catches that and takes a
default, but not in `ModelInstanceState::getGuidedDecodingConfigFromParams`, so the model would not load
(model_instance_state.cc of 0.19 to 1.2.1; `gpt_model_type` is read so too, and never left open)."""

# Template variables that stand for a parameter of another name (fill_template.py's spelling).
_ALIASES = {
    "batching_strategy": "gpt_model_type",
    "engine_dir": "gpt_model_path",
    "encoder_engine_dir": "encoder_model_path",
}
TEMPLATE_VALUE = "template-value"
"""Name of the findings about parameters."""
_INTEGERS = r"-?\d+(,-?\d+)*"
_MOST = 2**31 - 1
"""Of a number in `config.pbtxt`: its fields are int32 or wider (model_config.proto)."""


def _is_choices(value: str) -> bool:
    """Paths in braces, `{0}, {0, 0}`: what the C++ backend splits; JSON lists are for run.py."""
    path = r"\{\s*\d+(\s*,\s*\d+)*\s*\}"
    return re.fullmatch(rf"\s*{path}(\s*,\s*{path})*\s*", value) is not None


def _is_fraction(value: str) -> bool:
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False


_FORMS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "text": (bool, "a text"),
    "int": (lambda value: re.fullmatch(r"-?\d+", value) is not None, "a whole number"),
    "int list": (
        lambda value: re.fullmatch(_INTEGERS, value) is not None,
        "whole numbers separated by commas",
    ),
    "fraction": (_is_fraction, "a number from 0 to 1"),
    "bool": (lambda value: value.lower() in ("true", "false", "0", "1"), "true or false"),
    "device ids": (
        lambda value: re.fullmatch(rf"{_INTEGERS}(;{_INTEGERS})*", value) is not None,
        "GPU numbers: commas within an instance, semicolons between instances (0,1;2,3)",
    ),
    "choices": (_is_choices, "paths in braces: {0}, {0, 0}, {1}"),
}


@dataclass(frozen=True)
class ModelSettings:
    """What a model's configuration is filled with.

    Attributes:
        parameters: the model's `parameters`; unset ones are absent.
        variables: template variables that are fields of the configuration: batch size, queue, types, instances.
    """

    parameters: Mapping[str, str]
    variables: Mapping[str, str]

    def number(self, name: str) -> int:
        """A variable that is a whole number."""
        return int(self.variables[name])


def settings(
    model: str,
    overrides: Mapping[str, Mapping[str, str]],
    *,
    parameters: Mapping[str, str | None],
    variables: Mapping[str, str],
    like: str | None = None,
) -> ModelSettings:
    """What the kit sets for a model, under what the spec says about it.

    Args:
        model: name of the model in the repository.
        overrides: `engine.triton_parameters`.
        parameters: the kit's values; those that are None stay unset. Names may go beyond NVIDIA's.
        variables: the kit's values of the template variables that are fields of the configuration.
        like: the model of the contract that it is a copy of, if its name is another one.

    Raises:
        UnsupportedDeployment: a name is unknown (names the nearest one) or a value has not the parameter's form; with
            all that is wrong.
    """
    known = contract()["parameters"].get(like or model, {}) | {
        name: "text" for name in parameters if name not in contract()["parameters"].get(like or model, {})
    }
    fields = contract()["template_variables"].get(like or model, {})
    filled = {name: value for name, value in parameters.items() if value is not None}
    changed, found = dict(variables), list[Finding]()
    for given, value in overrides.get(model, {}).items():
        name = _ALIASES.get(given, given)
        place = f"engine.triton_parameters.{model}.{given}"
        if name in known:
            if value or name not in READ_UNGUARDED:
                found += _form_findings(place, known[name], value)
            filled[name] = value
        elif name in fields:
            found += _form_findings(place, fields[name], value)
            changed[name] = value
        else:
            near = _nearest(given, [*known, *fields, *_ALIASES])
            found.append(_wrong(f"{place}: unknown parameter{near}"))
    numbers = {name: value for name, value in changed.items() if fields.get(name) == "int"}
    for name, value in numbers.items():
        if (value.isdigit() and int(value) > _MOST) or value.startswith("-"):
            found.append(_wrong(f"{name} of {model} is {value}; it must be from 0 to {_MOST}"))
    require_none(found)
    return ModelSettings(filled, changed)


def unknown_models(overrides: Mapping[str, Mapping[str, str]], models: list[str]) -> Iterator[Finding]:
    """A finding for each model with parameters that the repository does not have; names the nearest one."""
    for model in overrides:
        if model not in models:
            near = _nearest(model, models)
            yield _wrong(f"engine.triton_parameters.{model}: the repository has no such model{near}")


def _form_findings(place: str, form: str | list[str], value: str) -> Iterator[Finding]:
    if "${" in value:
        yield _wrong(f"{place} is {value!r}: an unfilled template variable; give a value or leave it out")
    elif isinstance(form, list):
        if value not in form:
            yield _wrong(f"{place} is {value!r}; it must be one of {', '.join(form)}")
    else:
        holds, wording = _FORMS[form]
        if not holds(value):
            yield _wrong(f"{place} is {value!r}; it must be {wording}")


def _wrong(reason: str) -> Finding:
    return Finding(TEMPLATE_VALUE, "error", reason, reference="tensorrtllm_backend#720, TensorRT-LLM#2709")


def _nearest(given: str, known: list[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    return f", did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"
