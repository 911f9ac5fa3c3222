"""The loss of one micro-batch, put together of the parts that the config names, and its metrics.

Contract: the sum of `policy_loss` over the micro-batches and ranks of a mini-batch is the mini-batch's loss; nothing is
divided afterwards. Three policies appear, and their ratios are kept apart:

- behaviour: the engine that sampled (its log-probs come with the trajectory),
- proximal: the learner's weights at the start of the update,
- current: the learner's weights now (the only one with a gradient).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from configs.schema import RLConfig
from learner.objectives.correction import importance_weights
from learner.objectives.kl import kl_estimates, kl_penalty
from learner.objectives.reduction import Denominators, token_weights
from learner.objectives.surrogates import Surrogate, surrogate
from learner.objectives.values import value_loss


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch of sampled reports; all tensors are [B, T], `mask` is true where a token counts.

    `current` and, with advantage=ppo, `values` carry gradients, and `entropy` where it has a coefficient. The rest is
    constant. `old_values` and `returns` come with `values`: the head's at the start of the update, and its targets.
    `fresh` (bool) are the tokens that the proximal weights themselves have sampled, which only the metrics look at.
    """

    current: Tensor
    proximal: Tensor
    behaviour: Tensor
    reference: Tensor
    entropy: Tensor
    advantages: Tensor
    mask: Tensor
    values: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
    fresh: Tensor | None = None

    def zeroed(self) -> TokenBatch:
        """Everything masked set to 0, so that nothing there, infinite or NaN, reaches a sum or a gradient."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return TokenBatch(
            **{k: v if v is None or v.dtype == torch.bool else torch.where(self.mask, v, 0.0) for k, v in parts.items()}
        )


@dataclass(frozen=True)
class LossParts:
    """`loss` is this micro-batch's share (with gradient); `sums` and `maxima` are constants to be reduced over all."""

    loss: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


def policy_loss(batch: TokenBatch, settings: RLConfig, kl_coef: float, denominators: Denominators) -> LossParts:
    """The micro-batch's share of -w * surrogate + kl_coef * KL - entropy_coef * entropy + value.coef * value loss.

    w is the importance weight of the correction; the KL is there with kl.place=loss, the value loss with `values`. The
    KL is not weighed by w: tokens that the correction leaves out still hold the policy to the warm start.
    Raises ValueError where the entropy has a coefficient and no gradient: the bonus would do nothing.
    """
    if settings.entropy_coef != 0.0 and batch.current.requires_grad and not batch.entropy.requires_grad:
        raise ValueError("entropy_coef is set, and the policy's entropy carries no gradient")
    batch = batch.zeroed()
    weight, raw = importance_weights(settings.correction, batch.proximal, batch.behaviour, batch.mask)
    part = surrogate(settings, batch.current, batch.proximal, batch.advantages, batch.mask)
    losses = -weight * part.objective
    if settings.kl.place == "loss":
        losses = losses + kl_coef * kl_penalty(settings.kl.estimator, batch.current, batch.reference, batch.proximal)
    if settings.entropy_coef != 0.0:
        losses = losses - settings.entropy_coef * batch.entropy
    fit = _value_losses(batch, settings)
    if fit is not None:
        # DeepSpeed clips the gradients of policy and head by one norm, and the head's would be the most of it while it
        # knows little: the policy's would be scaled down by how wrong the critic is. The two have no weight in common,
        # and AdamW takes the same steps whatever the scale of a loss, so a small coefficient leaves the norm to the
        # policy and takes nothing from the head, at every ZeRO stage.
        losses = losses + settings.value.coef * fit
    weighed = token_weights(settings.reduction, batch.mask, denominators).to(losses.dtype) * losses
    with torch.no_grad():
        sums = {
            # Times the tokens, as the metrics' sums are divided by them: the mean loss of the mini-batches.
            "loss": weighed * denominators.tokens,
            **_policy_sums(batch, part),
            **_correction_sums(batch, settings, weight, raw),
            **_fresh_sums(batch),
            **_value_sums(batch, fit),
        }
        gap = (batch.proximal - batch.behaviour).abs()
        maxima = {"importance": raw, "logprob_gap": gap, "ratio": part.ratio}
        totals = {name: torch.where(batch.mask, value, 0.0).double().sum() for name, value in sums.items()}
        largest = {name: torch.where(batch.mask, value, 0.0).max().double() for name, value in maxima.items()}
    return LossParts(weighed.sum(), totals, largest)


def summarise(sums: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a batch from its global sums and maxima: means over tokens, maxima, and what follows from them.

    "ess", the effective sample size as a share: (sum w)^2 / (n sum w^2) (Kish 1965), 1 where all tokens weigh the same.
    "logprob_gap_fresh_mean" is left out where no token is fresh.
    "explained_variance" of the value head: 1 - Var(returns - values) / Var(returns), 1 where it knows them.
    """
    tokens = max(sums["tokens"], 1.0)
    inner = {"tokens", "weight", "weight_squared", "fresh", "fresh_gap"}
    inner |= {"return", "return_squared", "error", "error_squared"}
    means = {name: value / tokens for name, value in sums.items() if name not in inner}
    metrics = {
        **{f"{name}_mean" if name in maxima else name: value for name, value in means.items()},
        **{f"{name}_max": value for name, value in maxima.items()},
        "ess": sums["weight"] ** 2 / (tokens * sums["weight_squared"]) if sums["weight_squared"] > 0 else 0.0,
        "tokens": sums["tokens"],
    }
    if sums.get("fresh", 0.0) > 0:
        metrics["logprob_gap_fresh_mean"] = sums["fresh_gap"] / sums["fresh"]
    if "return" in sums:
        spread = _variance(sums, "return", tokens)
        metrics["explained_variance"] = 1.0 - _variance(sums, "error", tokens) / spread if spread > 0 else 0.0
    return metrics


def _value_losses(batch: TokenBatch, settings: RLConfig) -> Tensor | None:
    if batch.values is None:
        return None
    if batch.old_values is None or batch.returns is None:
        raise ValueError("values without old_values and returns")
    return value_loss(batch.values, batch.old_values, batch.returns, batch.mask, settings.value.clip)


def _policy_sums(batch: TokenBatch, part: Surrogate) -> dict[str, Tensor]:
    k1, k2, k3 = kl_estimates(batch.current, batch.reference)
    return {
        "tokens": torch.ones_like(k1),
        "surrogate": part.objective,
        "kl_k1": k1,
        "kl_k2": k2,
        "kl_k3": k3,
        "entropy": batch.entropy,
        "clip_low": part.low.double(),
        "clip_high": part.high.double(),
        "clip_dual": part.dual.double(),
    }


def _correction_sums(batch: TokenBatch, settings: RLConfig, weight: Tensor, raw: Tensor) -> dict[str, Tensor]:
    above = (raw > settings.correction.cap).double()
    return {
        "importance": raw,
        "importance_truncated": above if settings.correction.mode == "truncate" else torch.zeros_like(above),
        "importance_masked": above if settings.correction.mode == "mask" else torch.zeros_like(above),
        "weight": weight,
        "weight_squared": weight.double() ** 2,
        "logprob_gap": (batch.proximal - batch.behaviour).abs(),
    }


def _fresh_sums(batch: TokenBatch) -> dict[str, Tensor]:
    if batch.fresh is None:
        return {}
    fresh = batch.fresh.double()
    return {"fresh": fresh, "fresh_gap": fresh * (batch.proximal - batch.behaviour).abs()}


def _value_sums(batch: TokenBatch, fit: Tensor | None) -> dict[str, Tensor]:
    if fit is None or batch.values is None or batch.returns is None:
        return {}
    error = (batch.returns - batch.values).double()
    target = batch.returns.double()
    return {
        "value_loss": fit,
        "return": target,
        "return_squared": target.square(),
        "error": error,
        "error_squared": error.square(),
    }


def _variance(sums: Mapping[str, float], name: str, count: float) -> float:
    mean = sums[name] / count
    return max(sums[f"{name}_squared"] / count - mean * mean, 0.0)
