"""The error of reading and writing drafter checkpoints; its message names the file, the key and what would be right."""

from deployments.errors import DrafthouseError


class CheckpointError(DrafthouseError, ValueError):
    """A drafter checkpoint is missing, damaged, or not what its config says."""
