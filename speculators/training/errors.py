"""The error of a training run; its message says what is wrong, where, and what would be right."""


class TrainingError(ValueError):
    """A run cannot start or go on."""
