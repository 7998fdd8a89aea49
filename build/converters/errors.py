"""The error of checkpoint conversion; its message names what is wrong, where, and what would be right."""


class ConversionError(ValueError):
    """A drafter cannot be converted; nothing was written."""
