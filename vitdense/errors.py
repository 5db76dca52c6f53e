"""Errors that are a user's to mend: each carries one clear message, and every tool turns it into exit code 2."""


class UserError(ValueError):
    """A mistake in what the user gave: the message says what, where, what was given and what is allowed."""


class RecipeError(UserError):
    """Every fault of one recipe, a line each."""


class DataError(UserError):
    """A file or a record of a data set that can't be used; the message names it."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or made for something else."""


class WeightsError(UserError):
    """Weights that don't fit the backbone; the message names the keys."""


class SaveError(RuntimeError):
    """A checkpoint that could not be written, such as on a full disk; the ones before it are untouched."""


class TrainingError(RuntimeError):
    """Training that can't go on, such as a loss that is not finite; the message says at which step and on what."""
