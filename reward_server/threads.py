"""How many threads torch computes with in a process that scores."""

from __future__ import annotations

import os
import sys

from reward_server.errors import RewardError

# How long (turns of a loop, about 20 us) a thread of OpenMP waits awake for the next piece of work. A scorer has many
# small pieces: asleep at once (0) costs 15 % of its speed; the default of 300,000 takes the cores of other processes.
_SPIN = "10000"


def set_threads(threads: int) -> None:
    """Must come before torch is imported, which reads this once; RewardError if it is too late."""
    if "torch" in sys.modules:
        raise RewardError("torch was loaded before the scorer could set its threads")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["GOMP_SPINCOUNT"] = _SPIN
