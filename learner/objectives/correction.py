"""Importance correction of what the sampling engine's policy (behaviour) and the learner's (proximal) differ in.

Contract: pure functions of [B, T] tensors; the weights are constants. The ratio proximal / behaviour is kept apart from
the surrogate's current / proximal (Hilton et al. 2022, "Batch size-invariance for policy optimization",
arXiv:2110.00641): the first may be bounded without making the second's clip act.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.schema import CorrectionConfig


def importance_weights(
    settings: CorrectionConfig, proximal: Tensor, behaviour: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The weights of tokens that another policy sampled, and the raw ratios pi_proximal / pi_behaviour, both [B, T].

    Level "sequence" takes the product of a report's ratios for each of its tokens. Mode "truncate": min(ratio, cap)
    (Ionides 2008; Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"); "mask":
    the ratio up to the cap and 0 above (Liu et al. 2025, "When speed kills stability"); "off": 1.
    Raises ValueError for any other mode or level.
    """
    log_ratio = torch.where(mask, proximal - behaviour, 0.0).detach()
    if settings.level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
    elif settings.level != "token":
        raise ValueError(f"no level {settings.level!r} of the correction: token or sequence")
    ratio = torch.exp(log_ratio)
    if settings.mode == "truncate":
        return ratio.clamp(max=settings.cap), ratio
    if settings.mode == "mask":
        return torch.where(ratio > settings.cap, 0.0, ratio), ratio
    if settings.mode == "off":
        return torch.ones_like(ratio), ratio
    raise ValueError(f"no mode {settings.mode!r} of the correction: truncate, mask or off")
