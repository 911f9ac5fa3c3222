"""Putting a policy's weights where every rollout actor can fetch them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch import Tensor

from actors.trajectory import WeightsRef
from actors.weights import weights_digest
from rrg.model.policy import ReportPolicy


def publish(policy: ReportPolicy, version: int, broadcast: str) -> WeightsRef:
    """The weights as `version`: float32 arrays in Ray's object store, with a canary and a digest to check them by."""
    arrays = {name: _as_array(value) for name, value in policy.export_tensors(broadcast).items()}
    return WeightsRef(version, ray.put(arrays), policy.canary(), weights_digest(arrays))


def _as_array(value: Tensor) -> npt.NDArray[np.float32]:
    array: Any = value.detach().to("cpu", torch.float32, copy=True).numpy()
    return np.asarray(array, dtype=np.float32)
