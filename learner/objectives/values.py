"""The loss of PPO's value head. Contract: pure functions of [B, T] tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """max((V - R)^2, (V_old + clip(V - V_old, +-clip) - R)^2) / 2 for each token, 0 where `mask` is false.

    Source: the implementation of Schulman et al. 2017 (OpenAI Baselines, ppo2), as studied by Engstrom et al. 2020
    (arXiv:2005.12729, section 3): a value that has moved by more than `clip` is not pulled further the same way.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    worse = torch.maximum((values - returns).square(), (near - returns).square())
    return torch.where(mask, 0.5 * worse, 0.0)
