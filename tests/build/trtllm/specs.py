"""Specs for the tests: one small, valid speculation section a method, and whole deployments around them."""

from pathlib import Path
from typing import Any

from deployments.spec import DeploymentSpec

SPECULATION: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "anpd": {"method": "anpd", "draft_length": 7, "ngram": 5},
    "prompt_lookup": {"method": "prompt_lookup", "draft_length": 5, "ngram": 3},
    "suffix_automaton": {"method": "suffix_automaton", "draft_length": 5},
    "draft_model": {"method": "draft_model", "model": "models/draft", "draft_length": 5},
    "medusa": {"method": "medusa", "checkpoint": "models/heads"},
    "eagle": {"method": "eagle", "checkpoint": "models/eagle"},
    "eagle3": {"method": "eagle3", "checkpoint": "models/eagle3", "draft_length": 3},
    "peagle": {"method": "peagle", "checkpoint": "models/peagle"},
    "redrafter": {"method": "redrafter", "checkpoint": "models/redrafter"},
    "lookahead": {"method": "lookahead", "window": 7, "ngram": 7, "verification_set": 7},
    "windowed": {"method": "windowed"},
    "low_bit": {"method": "low_bit"},
    "mtp": {"method": "mtp", "draft_length": 2},
    "pard": {"method": "pard", "model": "models/pard"},
    "dflash": {"method": "dflash", "model": "models/dflash"},
    "mlp_speculator": {"method": "mlp_speculator", "checkpoint": "models/mlp"},
    "token_recycling": {"method": "token_recycling"},
    "plan": {"plan": "plan.json"},
}


def deployment(
    method: str = "none",
    line: str = "A",
    runtime: str | None = None,
    speculation: dict[str, Any] | None = None,
    model_type: str = "llama",
    model: Path = Path("models/target"),
    **engine: Any,
) -> DeploymentSpec:
    """A deployment on TensorRT-LLM; `speculation` adds to the method's section, `engine` to the engine's."""
    return DeploymentSpec.model_validate(
        {
            "name": "example",
            "target": {"model": model, "model_type": model_type},
            "engine": {"kind": "tensorrt_llm", "line": line, "runtime": runtime} | engine,
            "speculation": SPECULATION[method] | (speculation or {}),
        }
    )
