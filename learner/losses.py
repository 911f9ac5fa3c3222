"""The policy loss of RL: clipped surrogate, importance correction, KL to the warm start. Pure functions of tensors.

Contract: every function works on one micro-batch and returns *sums* over its unmasked tokens; the caller divides by a
denominator that is global over micro-batches and ranks, so that the split never changes the gradient. Three policies
appear, and their ratios are kept apart:

- behaviour: the engine that sampled (its log-probs come with the trajectory),
- proximal: the learner's weights at the start of the update,
- current: the learner's weights now (the only one with a gradient).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch of sampled reports; all tensors are [B, T], `advantages` is [B].

    `current` carries the gradient, everything else is constant. `mask` is true where a token counts.
    """

    current: Tensor
    proximal: Tensor
    behaviour: Tensor
    reference: Tensor
    entropy: Tensor
    advantages: Tensor
    mask: Tensor


class LossSettings(Protocol):
    """The fields of `configs.schema.RLConfig` that shape the loss."""

    @property
    def clip_low(self) -> float: ...
    @property
    def clip_high(self) -> float: ...
    @property
    def kl_coef(self) -> float: ...
    @property
    def importance_cap(self) -> float: ...


@dataclass(frozen=True)
class LossParts:
    """`loss` is a sum over tokens (with gradient); `sums` and `maxima` are constants to be reduced over the batch."""

    loss: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


def kl_estimates(current: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The estimators k1, k2, k3 of KL(current || reference) for tokens sampled from `current`, elementwise.

    With d = log current - log reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d.
    Source: Schulman 2020, "Approximating KL divergence" (http://joschu.net/blog/kl-approx.html). As a loss, the
    gradient of k2 is that of the true reverse KL; k1's is zero in expectation and k3's that of the forward KL.
    """
    d = current - reference
    return d, 0.5 * d * d, torch.expm1(-d) + d


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """The PPO objective min(r A, clip(r, 1 - low, 1 + high) A), elementwise (to be maximised).

    Source: Schulman et al. 2017, PPO (arXiv:1707.06347), eq. 7; the asymmetric range: Yu et al. 2025, DAPO
    (arXiv:2503.14476), eq. 10 ("clip higher").
    """
    return torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)


def truncated_importance(proximal: Tensor, behaviour: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """The weights min(pi_proximal / pi_behaviour, cap) of tokens that another engine sampled, and the raw ratios.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training" (truncated
    importance sampling, TIS); the truncation after Ionides 2008.
    """
    ratio = torch.exp(proximal - behaviour)
    return ratio.clamp(max=cap), ratio


def policy_loss(batch: TokenBatch, settings: LossSettings) -> LossParts:
    """The loss of one micro-batch: the sum over tokens of -w * surrogate + kl_coef * k2.

    w is the truncated importance weight (constant), the surrogate's ratio is current / proximal, and k2 is taken
    against `reference`. Divide by the number of tokens of the whole mini-batch: the token-global mean of DAPO, in
    which long reports are not down-weighted.
    """
    weight, raw = truncated_importance(batch.proximal, batch.behaviour, settings.importance_cap)
    advantages = batch.advantages.unsqueeze(1).expand_as(batch.current)
    ratio = torch.exp(batch.current - batch.proximal)
    surrogate = clipped_surrogate(ratio, advantages, settings.clip_low, settings.clip_high)
    k1, k2, k3 = kl_estimates(batch.current, batch.reference)
    token_loss = -weight * surrogate + settings.kl_coef * k2

    with torch.no_grad():
        gap = (batch.proximal - batch.behaviour).abs()
        sums = {
            "tokens": torch.ones_like(gap),
            "surrogate": surrogate,
            "loss": token_loss,
            "kl_k1": k1,
            "kl_k2": k2,
            "kl_k3": k3,
            "entropy": batch.entropy,
            "clip_low": ((advantages < 0) & (ratio < 1.0 - settings.clip_low)).double(),
            "clip_high": ((advantages > 0) & (ratio > 1.0 + settings.clip_high)).double(),
            "importance": raw,
            "importance_truncated": (raw > settings.importance_cap).double(),
            "weight": weight,
            "weight_squared": weight.double() ** 2,
            "logprob_gap": gap,
        }
        maxima = {"importance": raw, "logprob_gap": gap, "ratio": ratio}
        totals = {name: _masked_sum(value.double(), batch.mask) for name, value in sums.items()}
        largest = {name: torch.where(batch.mask, value, 0.0).max().double() for name, value in maxima.items()}
    return LossParts(loss=_masked_sum(token_loss, batch.mask), sums=totals, maxima=largest)


def summarise(sums: dict[str, float], maxima: dict[str, float]) -> dict[str, float]:
    """Means over tokens, the effective sample size as a share, and the maxima, from global sums.

    ESS = (sum w)^2 / (n sum w^2) (Kish 1965): 1 where all tokens weigh the same.
    """
    tokens = max(sums["tokens"], 1.0)
    means = {name: value / tokens for name, value in sums.items() if name not in ("tokens", "weight", "weight_squared")}
    return {
        **{f"{name}_mean" if name in maxima else name: value for name, value in means.items()},
        **{f"{name}_max": value for name, value in maxima.items()},
        "ess": sums["weight"] ** 2 / (tokens * sums["weight_squared"]) if sums["weight_squared"] > 0 else 0.0,
        "tokens": sums["tokens"],
    }


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()
