"""The warm start: losses that make the extractor see before, and while, the language model learns to write.

Contract: losses are pure functions of the model's outputs and the targets, means over a batch. Stage "extractor"
trains the extractor alone on region findings, significance and boxes. Stage "policy" trains extractor and language
model on the reports with those losses kept on. Without the first stage the language model learns to write fluent
reports that ignore the image, and never comes back from there.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import SFTConfig
from learner.sft_data import RegionTargets, SFTBatch, SFTSchedule, SFTStep, Stage, collate, sft_lr, sft_schedule
from rrg.model.extractor import RegionOutput
from rrg.model.features import FeatureBatch
from rrg.model.policy import PolicyOutput, ReportPolicy

__all__ = [
    "PolicyLike",
    "RegionTargets",
    "SFTBatch",
    "SFTSchedule",
    "SFTStep",
    "Stage",
    "attention_loss",
    "collate",
    "extractor_loss",
    "findings_loss",
    "report_loss",
    "sft_loss",
    "sft_lr",
    "sft_schedule",
    "significance_loss",
    "stage_parameters",
]


class PolicyLike(Protocol):
    """A `ReportPolicy`, or a wrapper of one that is called in the same way."""

    def __call__(self, batch: FeatureBatch, ids: Tensor | None = None, mask: Tensor | None = None) -> PolicyOutput: ...


def findings_loss(regions: RegionOutput, targets: RegionTargets) -> Tensor:
    """Binary cross-entropy of the findings, summed over findings, mean over regions; plus that of the study's."""
    by_region = F.binary_cross_entropy_with_logits(regions.findings, targets.findings, reduction="none")
    by_study = F.binary_cross_entropy_with_logits(regions.study_findings, targets.study_findings, reduction="none")
    return _mean_known(by_region.sum(-1).mean(-1) + by_study.sum(-1), targets.known)


def significance_loss(regions: RegionOutput, targets: RegionTargets) -> Tensor:
    """Binary cross-entropy of "something is abnormal in this region", mean over regions."""
    losses = F.binary_cross_entropy_with_logits(regions.significance, targets.significance, reduction="none")
    return _mean_known(losses.mean(-1), targets.known)


def attention_loss(regions: RegionOutput, targets: RegionTargets) -> Tensor:
    """-log of the attention that falls into a region's box, mean over the regions that have one.

    Where inside the box to look stays free: a nodule is a small part of its lung.
    """
    boxed = targets.inside.any(-1)
    if not boxed.any():
        return regions.attention.new_zeros(())
    mass = (regions.attention * targets.inside).sum(-1)[boxed]
    return -mass.clamp_min(1e-6).log().mean()


def report_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of the reports, nats a token: the mean over the batch's tokens by `weights` [B, T]."""
    return -(logprobs * weights).sum() / weights.sum()


def extractor_loss(regions: RegionOutput, targets: RegionTargets, cfg: SFTConfig) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum of the extractor's three losses, and each of them."""
    parts = {
        "findings_loss": (cfg.region_weight, findings_loss(regions, targets)),
        "significance_loss": (cfg.significance_weight, significance_loss(regions, targets)),
        "attention_loss": (cfg.attention_weight, attention_loss(regions, targets)),
    }
    total = torch.stack([weight * loss for weight, loss in parts.values()]).sum()
    return total, {name: float(loss.detach()) for name, (_, loss) in parts.items()}


def sft_loss(model: PolicyLike, batch: SFTBatch, stage: Stage, cfg: SFTConfig) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step and its parts by name."""
    if stage == "extractor":
        return extractor_loss(model(batch.features).regions, batch.targets, cfg)
    output = model(batch.features, batch.ids, batch.mask)
    assert output.logprobs is not None
    loss = report_loss(output.logprobs, batch.mask + (cfg.finding_token_weight - 1.0) * batch.stated)
    extra, metrics = extractor_loss(output.regions, batch.targets, cfg)
    return loss + extra, {"report_loss": float(loss.detach()), **metrics}


def stage_parameters(policy: ReportPolicy, stage: Stage) -> list[nn.Parameter]:
    """What a stage trains."""
    return list(policy.extractor.parameters() if stage == "extractor" else policy.parameters())


def _mean_known(losses: Tensor, known: Tensor) -> Tensor:
    """Mean over the studies whose labels are known; 0 where none is."""
    return (losses * known).sum() / known.sum().clamp_min(1)
