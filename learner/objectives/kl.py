"""KL(policy || warm start): estimators, the penalty in the loss, the adaptive coefficient.

Contract: pure functions; log-probs are of tokens that were sampled from (about) the current policy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.check_rl import KL_ERROR_LIMIT


def kl_estimates(current: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The estimators k1, k2, k3 of KL(current || reference), elementwise.

    With d = log current - log reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d.
    Source: Schulman 2020, "Approximating KL divergence" (http://joschu.net/blog/kl-approx.html).
    """
    d = current - reference
    return d, 0.5 * d * d, torch.expm1(-d) + d


def kl_penalty(estimator: str, current: Tensor, reference: Tensor, proximal: Tensor) -> Tensor:
    """What goes into the loss, elementwise: a term whose gradient is, in expectation, the one of the reverse KL.

    k2 plain: its gradient d * grad log pi is that of the reverse KL (as k1's is inside the reward) where the current
    policy sampled the tokens; nothing corrects for those of another. k3 times the ratio current / proximal: plain, its
    gradient is that of the *forward* KL; the ratio makes it the reverse KL's for tokens of the proximal policy, so in
    every mini-batch of the update (DeepSeek-V3.2, arXiv:2512.02556, "unbiased KL estimate"). Tokens of weights older
    than the proximal ones are corrected by neither.
    Raises ValueError for k1: grad log pi has mean zero, so it would hold the policy by noise alone.
    """
    _, k2, k3 = kl_estimates(current, reference)
    if estimator == "k2":
        return k2
    if estimator == "k3":
        return torch.exp(current - proximal) * k3
    raise ValueError(f"the estimator {estimator!r} cannot be in the loss: k2 or k3")


def adapt_kl(coef: float, observed: float, target: float, horizon: int, episodes: int) -> float:
    """The coefficient of the next step: coef (1 + clip(observed / target - 1, -0.2, 0.2) episodes / horizon).

    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, where `episodes` are the samples of a step; `observed`
    is this step's mean KL (nats a token). Raises ValueError where a step could take the coefficient to 0 or below.
    """
    if horizon <= KL_ERROR_LIMIT * episodes:
        raise ValueError(f"a horizon of {horizon} for {episodes} episodes a step: must be above a fifth of them")
    error = min(max(observed / target - 1.0, -KL_ERROR_LIMIT), KL_ERROR_LIMIT)
    return coef * (1.0 + error * episodes / horizon)
