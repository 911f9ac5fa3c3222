"""Surrogates: what is maximised in place of the expected reward, a value for each token.

Contract: pure functions of [B, T] tensors. `current` carries the gradient; `proximal` (the learner's policy at the
start of the update) and `advantages` are constants. Values where `mask` is false mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from configs.schema import RLConfig


@dataclass(frozen=True)
class Surrogate:
    """All [B, T]: `objective` (to be maximised), `ratio` current / proximal, and where the clip acts (bool).

    `low` and `high`: at the lower and upper end of the range; `dual`: at the bound of dual-clip PPO.
    """

    objective: Tensor
    ratio: Tensor
    low: Tensor
    high: Tensor
    dual: Tensor


def surrogate(settings: RLConfig, current: Tensor, proximal: Tensor, advantages: Tensor, mask: Tensor) -> Surrogate:
    """The surrogate that `settings.surrogate` names. Raises ValueError where there is none of that name."""
    if settings.surrogate not in SURROGATES:
        raise ValueError(f"no surrogate {settings.surrogate!r}: {', '.join(SURROGATES)}")
    return SURROGATES[settings.surrogate](settings, current, proximal, advantages, mask)


def ppo_clip(settings: RLConfig, current: Tensor, proximal: Tensor, advantages: Tensor, mask: Tensor) -> Surrogate:
    """min(r A, clip(r, 1 - low, 1 + high) A), and not below c A where A < 0 (dual clip with c > 1).

    Source: Schulman et al. 2017, PPO (arXiv:1707.06347), eq. 7; the asymmetric range: Yu et al. 2025, DAPO
    (arXiv:2503.14476), eq. 10; the dual clip: Ye et al. 2020 (arXiv:1912.09729), "dual-clip PPO".
    """
    ratio = torch.exp(torch.where(mask, current - proximal, 0.0))
    return _clipped(settings, ratio, advantages)


def gspo(settings: RLConfig, current: Tensor, proximal: Tensor, advantages: Tensor, mask: Tensor) -> Surrogate:
    """The clipped objective with one ratio a report: the geometric mean of its tokens' ratios.

    Source: Zheng et al. 2025, GSPO (arXiv:2507.18071), eq. 5 to 7 (there the clip is far narrower: 3e-4 and 4e-4).
    """
    log_ratio = torch.where(mask, current - proximal, 0.0)
    mean = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
    return _clipped(settings, torch.exp(mean).expand_as(current), advantages)


def cispo(settings: RLConfig, current: Tensor, proximal: Tensor, advantages: Tensor, mask: Tensor) -> Surrogate:
    """sg(clip(r, 1 - low, 1 + high)) A log pi: the clip bounds a token's weight and never takes its gradient.

    Source: MiniMax 2025, MiniMax-M1 (arXiv:2506.13585), eq. 4 and 5; clip_low >= 1 leaves the lower end open, as there.
    """
    ratio = torch.exp(torch.where(mask, current - proximal, 0.0)).detach()
    low, high = ratio < 1.0 - settings.clip_low, ratio > 1.0 + settings.clip_high
    weight = ratio.clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)
    return Surrogate(weight * advantages * current, ratio, low, high, torch.zeros_like(low))


def reinforce(settings: RLConfig, current: Tensor, proximal: Tensor, advantages: Tensor, mask: Tensor) -> Surrogate:
    """A log pi: the plain policy gradient (Williams 1992), right only while current = proximal."""
    ratio = torch.exp(torch.where(mask, current - proximal, 0.0)).detach()
    never = torch.zeros_like(mask)
    return Surrogate(advantages * current, ratio, never, never, never)


def _clipped(settings: RLConfig, ratio: Tensor, advantages: Tensor) -> Surrogate:
    lowest, highest = 1.0 - settings.clip_low, 1.0 + settings.clip_high
    objective = torch.minimum(ratio * advantages, ratio.clamp(lowest, highest) * advantages)
    worse, better = advantages < 0, advantages > 0
    dual = torch.zeros_like(worse)
    if settings.dual_clip is not None:
        dual = worse & (ratio > settings.dual_clip)
        objective = torch.where(worse, torch.maximum(objective, settings.dual_clip * advantages), objective)
    return Surrogate(objective, ratio, worse & (ratio < lowest), better & (ratio > highest), dual)


SURROGATES: Final[dict[str, Callable[[RLConfig, Tensor, Tensor, Tensor, Tensor], Surrogate]]] = {
    "ppo_clip": ppo_clip,
    "gspo": gspo,
    "cispo": cispo,
    "reinforce": reinforce,
}
