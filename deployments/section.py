"""What all sections of the deployment spec share: unknown keys are errors, and nothing changes after loading."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping in the spec."""

    model_config = ConfigDict(extra="forbid", frozen=True)
