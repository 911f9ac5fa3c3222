"""Errors of the reward server and its client."""


class RewardError(RuntimeError):
    """Scores could not be had; the message says from where and what was waited for. Never turned into a score."""


class RewardSetupError(ValueError):
    """A setting, a file or a package is wrong or missing; the message names it and the way out."""


class RewardChangedError(RewardError):
    """Servers answered with scores of another definition or of other models than before."""


class PairError(RewardError):
    """One pair could not be scored or one text labelled, as an entry of a list or raised.

    The message says why and quotes no report.
    """
