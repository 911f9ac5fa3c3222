"""Errors that a person can mend."""


class UserError(ValueError):
    """Something outside of the code is wrong (a file, a field, a flag); the message names it and the way out.

    Commands print the message alone and exit with status 2; with `debug=true` the traceback too.
    """


class RunStoppedError(UserError):
    """A run stopped itself since going on would be of no use; the message says why. Exit status 3."""
