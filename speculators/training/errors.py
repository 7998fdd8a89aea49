"""The error of a training run; its message says what is wrong, where, and what would be right."""

from deployments.errors import DrafthouseError


class TrainingError(DrafthouseError, ValueError):
    """A run cannot start or go on."""
