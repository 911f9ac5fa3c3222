"""Advantages with one value a report: how much better it is than what it is compared with.

Contract: pure numpy. A failed sample has no advantage (0) and takes no part in any statistic. The samples of a group
may stand anywhere. The advantages of each token ("reinforce_pp", "ppo") are in `learner.objectives.returns`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Rewards of a group that differ by less (standard deviation) have no spread: what is left is rounding.
SPREAD_FLOOR: Final = 1e-6


@dataclass(frozen=True)
class Advantages:
    """`values` float32 [N]; `flat` bool [N]: the sample is of a group that teaches nothing.

    That is one without spread ("scst": without a baseline) or without enough valid samples. `groups` and `flat_groups`
    count all groups and those.
    """

    values: npt.NDArray[np.float32]
    groups: int
    flat: npt.NDArray[np.bool_]
    flat_groups: int


def sequence_advantages(
    kind: str,
    rewards: Sequence[float],
    groups: Sequence[str],
    valid: Sequence[bool],
    baselines: Mapping[str, float] | None = None,
) -> Advantages:
    """The advantages of samples with `rewards` in `groups` (their studies), for the advantage `kind`.

    - "grpo": (r - mean) / std of the group, population std (Shao et al. 2024, arXiv:2402.03300, section 4.1.2);
    - "dr_grpo": r - mean of the group (Liu et al. 2025, arXiv:2503.20783, section 3.2);
    - "rloo": r - mean of the group's other samples (Ahmadian et al. 2024, arXiv:2402.14740, "RLOO");
    - "reinforce_pp_baseline": r - mean of the group, over the batch's std of that (Hu et al. 2025, REINFORCE++,
      arXiv:2501.03262, "REINFORCE++ w/ baseline"; its mean over the batch is 0 as it is);
    - "scst": r - reward of the study's greedy report in `baselines` (Rennie et al. 2017, arXiv:1612.00563, section 3).

    Raises ValueError where the kind is none of these, the lengths differ or a valid sample's reward is not finite.
    """
    if kind != "scst" and kind not in _WITHIN_GROUP:
        raise ValueError(f"no advantage {kind!r} of whole reports: {', '.join((*_WITHIN_GROUP, 'scst'))}")
    reward, members = _members(rewards, groups, valid)
    values = np.zeros(len(reward))
    taught = {name: rows for name, rows in members.items() if _has_spread(reward[rows])}
    if kind == "scst":
        greedy = baselines or {}
        taught = {name: rows for name, rows in members.items() if name in greedy and len(rows)}
        for name, rows in taught.items():
            values[rows] = reward[rows] - greedy[name]
    else:
        for rows in taught.values():
            values[rows] = _WITHIN_GROUP[kind](reward[rows])
    if kind == "reinforce_pp_baseline" and taught:
        values /= values[np.concatenate(list(members.values()))].std()
    flat = members.keys() - taught.keys()
    return Advantages(
        values=values.astype(np.float32),
        groups=len(members),
        flat=np.array([group in flat for group in groups], dtype=bool),
        flat_groups=len(flat),
    )


def flat_groups(rewards: Sequence[float], groups: Sequence[str], valid: Sequence[bool]) -> tuple[int, int]:
    """Number of groups, and of those without spread (or with fewer than two valid samples)."""
    reward, members = _members(rewards, groups, valid)
    return len(members), sum(not _has_spread(reward[rows]) for rows in members.values())


def _members(
    rewards: Sequence[float], groups: Sequence[str], valid: Sequence[bool]
) -> tuple[Floats, dict[str, npt.NDArray[np.intp]]]:
    """Rewards as an array, and the rows of each group's valid samples."""
    if not len(rewards) == len(groups) == len(valid):
        raise ValueError(f"{len(rewards)} rewards, {len(groups)} groups and {len(valid)} validity flags")
    reward = np.asarray(rewards, dtype=np.float64)
    keep = np.asarray(valid, dtype=bool)
    if not np.isfinite(reward[keep]).all():
        raise ValueError("a valid sample has a reward that is not finite")
    rows: dict[str, list[int]] = {group: [] for group in groups}
    for row, group in enumerate(groups):
        if keep[row]:
            rows[group].append(row)
    return reward, {group: np.array(some, dtype=np.intp) for group, some in rows.items()}


def _has_spread(rewards: Floats) -> bool:
    return len(rewards) > 1 and float(rewards.std()) >= SPREAD_FLOOR


def _centred(rewards: Floats) -> Floats:
    return rewards - float(rewards.mean())


def _standardised(rewards: Floats) -> Floats:
    return _centred(rewards) / float(rewards.std())


def _leave_one_out(rewards: Floats) -> Floats:
    # r_i - mean of the others = (r_i - mean of all) n / (n - 1).
    return _centred(rewards) * (len(rewards) / (len(rewards) - 1))


_WITHIN_GROUP: Final[dict[str, Callable[[Floats], Floats]]] = {
    "grpo": _standardised,
    "dr_grpo": _centred,
    "rloo": _leave_one_out,
    "reinforce_pp_baseline": _centred,
}
