"""Model families: one record each, in a module of its own, and nothing else in the kit that knows their names.

A family joins by its module and its place in `FAMILIES`.
"""

from build.targets.errors import UnsupportedModelError
from build.targets.families.gemma3 import GEMMA3
from build.targets.families.granite import GRANITE
from build.targets.families.llama import LLAMA, MISTRAL
from build.targets.families.qwen import QWEN2, QWEN3
from build.targets.families.smollm3 import SMOLLM3

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GRANITE, SMOLLM3, GEMMA3)
BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}
BY_GGUF_ARCHITECTURE = {family.gguf.architecture: family for family in FAMILIES if family.gguf is not None}
SUPPORTED_MODELS = ", ".join(family.described for family in FAMILIES)


def refuse_family(name: str, where: str) -> UnsupportedModelError:
    """The error for a model type or GGUF architecture that is not supported."""
    return UnsupportedModelError(
        f"{where}: model type {name!r} is not supported. Supported: {SUPPORTED_MODELS}"
    )
