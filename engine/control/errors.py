"""What a plan is refused with."""

from deployments.errors import DrafthouseError


class ProfileError(DrafthouseError, ValueError):
    """A profile is missing, damaged, of something else, or does not cover what is asked; says what to run."""
