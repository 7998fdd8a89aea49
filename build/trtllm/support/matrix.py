"""Which method runs on which release line and runtime of TensorRT-LLM, and `resolve`, which finds a deployment's place.

The matrix is put together from the methods' records (`build.trtllm.methods`). Where the spec leaves `engine.runtime`
open, the line's first runtime that has the method is taken: compiled engines before the LLM API.

Example::

    resolved = resolve(load_spec(Path("deployments/llama3-8b-eagle3-trtllm.yaml")))
    resolved.line.name, resolved.runtime, resolved.support.drafting      # ("A", "llm_api", "in_model")
"""

from collections.abc import Mapping
from types import MappingProxyType

from build.trtllm.methods.table import METHODS
from build.trtllm.releases import (
    LINE_A,
    LINES,
    LineName,
    ReleaseLine,
    Runtime,
    detect_version,
    line_of_version,
    not_in_line,
)
from build.trtllm.resolved import Resolved, Supported
from build.trtllm.support.constraints import constraint_findings
from deployments.findings import Unsupported, UnsupportedDeployment, require_none
from deployments.spec import DeploymentSpec

SUPPORT_MATRIX: Mapping[tuple[LineName, Runtime], Mapping[str, Supported | Unsupported]] = MappingProxyType(
    {
        (line.name, runtime): MappingProxyType(
            {name: method.support[line.name, runtime] for name, method in METHODS.items()}
        )
        for line in LINES.values()
        for runtime in line.runtimes
    }
)


def resolve(spec: DeploymentSpec, line: ReleaseLine | None = None) -> Resolved:
    """Choose line and runtime where the spec leaves them open, and check everything that can be known beforehand.

    Args:
        spec: a deployment whose engine is TensorRT-LLM.
        line: the release line, when it is known already; None follows the spec, and `auto` asks the container.

    Raises:
        UnsupportedDeployment: line and runtime do not have the method, or cannot do what the spec asks of it.
        SpecError: the deployment is for the embedded engine, or the container cannot be asked.
    """
    resolved = unchecked(spec, line)
    require_none(constraint_findings(resolved))
    return resolved


def unchecked(spec: DeploymentSpec, line: ReleaseLine | None = None) -> Resolved:
    """As `resolve`, without the constraints on single settings."""
    chosen = line or _line(spec)
    runtime, support = _place(spec, chosen)
    return Resolved(spec, chosen, runtime, support)


def _line(spec: DeploymentSpec) -> ReleaseLine:
    engine = spec.tensorrt_llm
    if engine.line == "auto":
        return line_of_version(detect_version(engine.images.triton or LINE_A.triton_image))
    return LINES[engine.line]


def _place(spec: DeploymentSpec, line: ReleaseLine) -> tuple[Runtime, Supported]:
    wanted, method = spec.tensorrt_llm.runtime, spec.speculation.method
    if wanted is not None and wanted not in line.runtimes:
        raise UnsupportedDeployment(
            not_in_line(
                f"engine.runtime: {wanted} is not in line {line.name} ({line.releases}): TensorRT engines were removed "
                "in 1.3.0rc21",
                "runtime: llm_api, or line: A",
            )
        )
    missing: list[Unsupported] = []
    for runtime in (wanted,) if wanted else line.runtimes:
        entry = METHODS[method].support[line.name, runtime]
        if isinstance(entry, Supported):
            return runtime, entry
        missing.append(entry)
    raise UnsupportedDeployment(
        not_in_line(f"{method} on line {line.name}: {missing[0].reason}", missing[0].remedy)
    )
