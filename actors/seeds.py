"""Seeds of samples: a pure function of what a sample is, so that no actor, order or restart changes it."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def sample_seed(run_seed: int, step: int, study_id: str, sample_index: int) -> int:
    """The seed of one sample, in [0, 2**63).

    Stable across processes and Python versions (unlike `hash`). The parts are length-delimited by their separators:
    a study id may hold any text.
    """
    return hashed_seed(f"{run_seed}/{step}/{sample_index}/{study_id}".encode())


def continuation_seed(seed: int, token_ids: npt.NDArray[np.int32]) -> int:
    """The seed of the rest of a sample that was interrupted after these tokens; its own if there are none."""
    if not len(token_ids):
        return seed
    return hashed_seed(f"{seed}/".encode() + np.ascontiguousarray(token_ids, dtype="<i4").tobytes())


def hashed_seed(key: bytes) -> int:
    """A seed in [0, 2**63) that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
