"""The error of training data; its message names the file, the line and what would be right."""

from deployments.errors import DrafthouseError


class DataError(DrafthouseError, ValueError):
    """Training data is missing, damaged, empty, or not the target's."""
