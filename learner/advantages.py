"""Group-relative advantages: how much better a report is than the other reports of the same study.

Contract: pure numpy. A failed sample has no advantage (0) and takes no part in its group's statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SPREAD_FLOOR = 1e-6


@dataclass(frozen=True)
class GroupAdvantages:
    """`values[i]` is the advantage of sample i (float32); `flat_groups` counts the groups that teach nothing."""

    values: npt.NDArray[np.float32]
    groups: int
    flat_groups: int


def grpo_advantages(rewards: Sequence[float], groups: Sequence[str], valid: Sequence[bool]) -> GroupAdvantages:
    """Advantages A_i = (r_i - mean(r of the group)) / std(r of the group), population standard deviation.

    Source: Shao et al. 2024, DeepSeekMath (arXiv:2402.03300), section 4.1.2. A group whose rewards have no spread
    (or with fewer than two valid samples) gives 0 and is counted. The groups may come in any order.

    Raises ValueError where the lengths differ or the reward of a valid sample is not finite.
    """
    if not len(rewards) == len(groups) == len(valid):
        raise ValueError(f"{len(rewards)} rewards, {len(groups)} groups and {len(valid)} validity flags")
    reward = np.asarray(rewards, dtype=np.float64)
    keep = np.asarray(valid, dtype=bool)
    if not np.isfinite(reward[keep]).all():
        raise ValueError("a valid sample has a reward that is not finite")
    values = np.zeros(len(reward), dtype=np.float64)
    names, member = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    flat = 0
    for group in range(len(names)):
        rows = np.flatnonzero((member == group) & keep)
        spread = reward[rows].std() if len(rows) > 1 else 0.0
        if spread < SPREAD_FLOOR:
            flat += 1
            continue
        values[rows] = (reward[rows] - reward[rows].mean()) / spread
    return GroupAdvantages(values.astype(np.float32), groups=len(names), flat_groups=flat)
