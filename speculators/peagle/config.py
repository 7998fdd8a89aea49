"""`config.json` of a P-EAGLE drafter: that of an EAGLE-3 drafter of one or more layers, with a mask token.

The speculators library and NeMo AutoModel name the mask `mask_token_id`; of flat configs vLLM reads `pard_token`, then
`ptd_token_id` (`v1/spec_decode`), and of the library's it makes the former. What is written has `mask_token_id` and
`ptd_token_id`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import NonNegativeInt, model_validator

from speculators.eagle3.config import MASK_KEYS, Eagle3Config
from speculators.formats.config import PublishedConfig

_OF_EAGLE3 = ("layer_types", "speculators_model_type")  # in some configs: of its one layer, and its name


class PEagleConfig(Eagle3Config):
    """P-EAGLE.

    Attributes:
        num_hidden_layers: those of the drafter once the checkpoint is loaded.
        mask_token_id: the token whose embedding stands for one that is not known yet.
        embed_requires_grad: as in EAGLE-3; published trainers train the embedding unless they say that they did not.
    """

    library_name: ClassVar[str] = "peagle"
    in_parallel: ClassVar[bool] = True

    mask_token_id: NonNegativeInt
    embed_requires_grad: bool = True

    @model_validator(mode="before")
    @classmethod
    def _one_mask(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        named = {key: content[key] for key in MASK_KEYS if content.get(key) is not None}
        found = list(named.values())
        if any(mask != found[0] for mask in found):
            told = ", ".join(f"{key} {mask!r}" for key, mask in named.items())
            raise ValueError(f"the mask token is named differently: {told}")
        return {**content, "mask_token_id": found[0]} if found else content

    @model_validator(mode="after")
    def _known_mask(self) -> PEagleConfig:
        if self.mask_token_id >= self.vocab_size:
            raise ValueError(f"mask_token_id = {self.mask_token_id}; vocab_size is {self.vocab_size}")
        return self

    def content(self) -> dict[str, Any]:
        """The JSON object, with the mask token by the names that its readers know."""
        return {**super().content(), "ptd_token_id": self.mask_token_id}


def is_peagle(directory: Path) -> bool:
    """Whether a checkpoint's config names a mask, or what it is by the name of a library or class.

    SpecForge's has a class and no mask (`configs/qwen3-8b-peagle.json` there).

    Raises:
        CheckpointError: the config cannot be read.
    """
    content = PublishedConfig.read(directory).content()
    classes = content.get("architectures") or []
    named = content.get("speculators_model_type") == PEagleConfig.library_name
    return (
        named
        or any("peagle" in str(each).lower() for each in classes)
        or any(content.get(key) is not None for key in MASK_KEYS)
    )


def widened(config: Eagle3Config, *, num_hidden_layers: int, mask_token_id: int) -> PEagleConfig:
    """Of a drafter that begins as an EAGLE-3 one."""
    made = {"num_hidden_layers": num_hidden_layers, "mask_token_id": mask_token_id}
    kept = {key: value for key, value in config.content().items() if key not in _OF_EAGLE3}
    content = {**kept, **made, "embed_requires_grad": config.embed_requires_grad}
    return PEagleConfig.parse(content, "config")
