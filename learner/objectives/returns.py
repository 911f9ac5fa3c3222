"""Rewards, returns and advantages of each token, for "reinforce_pp" and "ppo", and whitening over the whole batch.

Contract: pure functions; tensors are [B, T] (`rewards` [B]), padded on the right, `mask` is true where a token counts.
Results are 0 where it is false.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Added to the variance: a batch without spread is whitened to 0, not to noise.
_VARIANCE_FLOOR = 1e-8


def token_rewards(rewards: Tensor, kl: Tensor, mask: Tensor, coef: float) -> Tensor:
    """The report's reward at its last token, minus coef * kl (estimator k1) at every token.

    Source: Ouyang et al. 2022 (arXiv:2203.02155), eq. 2. The sum over tokens is a report's reward for the methods with
    one advantage a report, where kl.place=reward.
    """
    left = mask.flip(-1).cumsum(-1).flip(-1)
    last = mask & (left == 1)
    return torch.where(last, rewards.unsqueeze(1), 0.0) - coef * torch.where(mask, kl, 0.0)


def discounted_returns(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """G_t = sum over k of gamma^k r_(t+k), of `rewards` [B, T].

    With gamma = 1 and `token_rewards`, the unnormalised advantage of REINFORCE++ (Hu et al. 2025, arXiv:2501.03262):
    the report's reward minus the KL from this token on.
    """
    total = torch.zeros_like(rewards[:, 0])
    returns = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        total = torch.where(mask[:, t], rewards[:, t] + gamma * total, total)
        returns[:, t] = torch.where(mask[:, t], total, 0.0)
    return returns


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages, and the returns (advantages + values) that the value head learns; `rewards` [B, T].

    A_t = delta_t + gamma lam A_(t+1) with delta_t = r_t + gamma V_(t+1) - V_t; behind the last token V and A are 0.
    Source: Schulman et al. 2016 (arXiv:1506.02438), eq. 16.
    """
    following = torch.zeros_like(values[:, 0])
    ahead = torch.zeros_like(following)
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        counts, value = mask[:, t], values[:, t]
        delta = rewards[:, t] + gamma * following - value
        ahead = torch.where(counts, delta + gamma * lam * ahead, ahead)
        following = torch.where(counts, value, following)
        advantages[:, t] = torch.where(counts, ahead, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """[count, sum, sum of squares] of the unmasked values, float64: to be added over micro-batches and ranks."""
    counted = torch.where(mask, values, 0.0).double()
    return torch.stack([mask.sum().double(), counted.sum(), counted.square().sum()])


def whiten(values: Tensor, mask: Tensor, moments: Tensor) -> Tensor:
    """(values - mean) / std with the mean and population standard deviation that `moments` tell of the whole batch."""
    count, total, squares = moments.unbind()
    mean = total / count.clamp_min(1.0)
    variance = (squares / count.clamp_min(1.0) - mean.square()).clamp_min(0.0)
    white = (values.double() - mean) * torch.rsqrt(variance + _VARIANCE_FLOOR)
    return torch.where(mask, white, 0.0).to(values.dtype)
