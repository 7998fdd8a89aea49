"""Keys and values of `engine.llm_args.speculative_config` that are spelt for the other release line.

The schema of the line refuses them too; here they are named for what they are, with this line's spelling.
"""

from collections.abc import Iterator

from build.trtllm.llm_api.schema import foreign_keys
from build.trtllm.methods.table import decoding_types
from build.trtllm.releases import LINES
from build.trtllm.resolved import Resolved
from deployments.findings import Finding


def spelling_findings(resolved: Resolved) -> Iterator[Finding]:
    """One finding a wrong key, and one for a wrong `decoding_type`."""
    given = resolved.engine.llm_args.get("speculative_config")
    if not isinstance(given, dict):
        return
    line = resolved.line
    foreign = foreign_keys(line.name)
    for key in given:
        if key in foreign:
            yield Finding(
                "key-of-another-line",
                "error",
                f"engine.llm_args.speculative_config.{key} is not in line {line.name} ({line.releases})",
                foreign[key],
                "TensorRT-LLM PR #10124, #11158, #12905, #17366",
            )
    decoding_type, here = given.get("decoding_type"), decoding_types(line.name)
    if decoding_type in here.values():
        return
    for other in LINES.values():
        for method, spelling in decoding_types(other.name).items():
            if spelling == decoding_type:
                yield Finding(
                    "wrong-spelling-for-the-line",
                    "error",
                    f"engine.llm_args.speculative_config.decoding_type: {decoding_type} is spelt for line {other.name}",
                    f"{here[method]} on line {line.name}, which speculation.method: {method} writes"
                    if method in here
                    else f"a method that line {line.name} has",
                    "TensorRT-LLM PR #10124, #11158",
                )
