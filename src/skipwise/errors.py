"""The errors a user can meet. Each is one line that names the thing and the way out."""


class SkipwiseError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_code = 1


class InputError(SkipwiseError):
    """What was asked for cannot be done: a missing file, an impossible length, an unsupported model."""

    exit_code = 2


class RunError(SkipwiseError):
    """The run began and failed: a full disk, a loss that is not a number, a probe that did not hold."""

    exit_code = 1
