"""Errors that a person can mend."""


class UserError(ValueError):
    """Something outside of the code is wrong (a file, a field, a flag); the message names it and the way out.

    Commands print the message alone and exit with status 2; with `debug=true` the traceback too.
    """


class ProcessError(RuntimeError):
    """A process of the run died or did not answer in time; the message names it. What was saved is whole, and can be
    gone on with. Exit status 4."""


class RunStoppedError(UserError):
    """A run stopped itself since going on would be of no use; the message says why. Exit status 3."""
