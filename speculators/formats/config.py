"""`config.json` of a published drafter: typed where this kit reads it, passed through where it does not.

Published configs carry many keys that only Transformers reads. They are kept and written back, so that reading
and writing a config loses nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from deployments.files.reading import read_json_object
from deployments.files.writing import write_json
from speculators.formats.errors import CheckpointError

CONFIG_FILE = "config.json"

ConfigType = TypeVar("ConfigType", bound="PublishedConfig")


class PublishedConfig(BaseModel):
    """Base of the families' configs; unknown keys are kept.

    Attributes:
        torch_dtype: type of the stored weights (`float32`, `float16`, `bfloat16`), as Transformers spells it.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    torch_dtype: str | None = None

    @classmethod
    def read(cls: type[ConfigType], directory: Path) -> ConfigType:
        """Read `config.json` of a checkpoint directory.

        Raises:
            CheckpointError: the file is missing or no JSON object, a key is missing, or a value is out of range.
        """
        path = directory / CONFIG_FILE
        return cls.parse(read_json_object(path, CheckpointError), str(path))

    @classmethod
    def parse(cls: type[ConfigType], content: dict[str, Any], where: str) -> ConfigType:
        """Check the content of a config; `where` is what errors call it.

        Raises:
            CheckpointError: a key is missing or a value is out of range.
        """
        try:
            return cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            raise CheckpointError(f"{where}: {'; '.join(map(_told, error.errors()))}") from None

    def changed(self: ConfigType, **values: Any) -> ConfigType:
        """A copy with other values, checked like a config that is read."""
        return type(self).parse({**self.content(), **values}, "config")

    def stored_as(self: ConfigType, dtype: str) -> ConfigType:
        """A copy for weights of another type; `dtype`, the newer spelling of the key, would contradict it."""
        content = {key: value for key, value in self.content().items() if key != "dtype"}
        return type(self).parse({**content, "torch_dtype": dtype}, "config")

    def content(self) -> dict[str, Any]:
        """The JSON object, unset optional keys left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def write(self, directory: Path) -> None:
        """Write `config.json` into an existing directory; an existing file is replaced at once.

        Raises:
            OSError: the directory cannot be written.
        """
        write_json(directory / CONFIG_FILE, self.content())


def _told(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"key {place!r} is missing"
    reason = str(error["msg"]).removeprefix("Value error, ")
    return f"{place} = {error['input']!r}: {reason}" if place else reason
