"""Putting a policy's weights where every rollout actor can fetch them."""

from __future__ import annotations

import ray

from actors.trajectory import WeightsRef
from actors.weights import as_array, weights_digest
from rrg.model.policy import ReportPolicy


def publish(policy: ReportPolicy, version: int, broadcast: str) -> WeightsRef:
    """The weights as `version`, in Ray's object store, with a canary and a digest to check them by."""
    arrays = {name: as_array(value) for name, value in policy.export_tensors(broadcast).items()}
    return WeightsRef(version, ray.put(arrays), policy.canary(), weights_digest(arrays))
