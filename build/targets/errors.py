"""Errors of target preparation; every message says what is wrong, where, and what would be right."""

from deployments.errors import DrafthouseError


class TargetError(DrafthouseError, ValueError):
    """A target model cannot be prepared or read."""


class UnsupportedModelError(TargetError):
    """The model is sound, but of a kind that the embedded engine does not run."""
