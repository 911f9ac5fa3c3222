"""Putting a policy's weights where every rollout actor can fetch them."""

from __future__ import annotations

import numpy as np
import ray

from actors.trajectory import WeightsRef
from actors.weights import as_array, weights_digest
from rrg.canary import Canary
from rrg.errors import RunStoppedError
from rrg.model.policy import ReportPolicy


def publish(policy: ReportPolicy, version: int, broadcast: str) -> WeightsRef:
    """The weights as `version`, in Ray's object store, with a canary and a digest to check them by.

    Raises what `finite_canary` does.
    """
    canary = finite_canary(policy, version)
    arrays = {name: as_array(value) for name, value in policy.export_tensors(broadcast).items()}
    return WeightsRef(version, ray.put(arrays), canary, weights_digest(arrays))


def finite_canary(policy: ReportPolicy, version: int) -> Canary:
    """The canary of weights that are to be published.

    Raises RunStoppedError where what they give is not finite: every actor would refuse them.
    """
    canary = policy.canary()
    if not (np.isfinite(canary.logprobs).all() and np.isfinite(canary.embeds).all()):
        raise RunStoppedError(
            f"after {version} RL steps the policy gives numbers that are not finite (learner.rl.lr, learner.grad_clip, "
            "model.dtype)"
        )
    return canary
