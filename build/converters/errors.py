"""The error of checkpoint conversion; its message names what is wrong, where, and what would be right."""

from deployments.errors import DrafthouseError


class ConversionError(DrafthouseError, ValueError):
    """A drafter cannot be converted; nothing was written."""
