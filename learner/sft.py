"""The warm start: losses that make the extractor see before, and while, the language model learns to write.

Contract: losses are pure functions of the model's outputs and the targets: sums over a batch. `sft_loss` divides them
by `SFTTotals` of the whole step, so that its sum over micro-batches and ranks is the step's loss, however they are cut.

Stage "regions" trains the extractor (and a backbone that is to be trained) on findings and significance of the regions,
on where they lie, and on region captions: each region's token alone makes the language model write what the report says
of that region. The language model learns from the captions too; from scratch there is nothing else yet that could teach
it. Stage "policy" trains all on whole reports, with those losses kept on. Without the first stage the language model
learns to write fluent reports that ignore the image, and never comes back from there.

The region queries are the language model's encodings of the descriptions. They are made again between the two stages,
not in every step: the extractor would have to follow queries that move under it, and a step would cost one more pass of
the language model; within a stage they are constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import Config, SFTConfig
from learner.sft_data import (
    RegionTargets,
    SFTBatch,
    SFTSchedule,
    SFTStep,
    Stage,
    sft_lr,
    sft_micro_batches,
    sft_schedule,
)
from rrg.model.extractor import RegionOutput
from rrg.model.lora import trainable_parameters
from rrg.model.policy import CaptionBatch, PolicyInputs, PolicyOutput, ReportPolicy

__all__ = [
    "PolicyLike",
    "RegionTargets",
    "SFTBatch",
    "SFTSchedule",
    "SFTStep",
    "SFTTotals",
    "Stage",
    "attention_loss",
    "extractor_losses",
    "findings_loss",
    "report_loss",
    "sft_loss",
    "sft_lr",
    "sft_micro_batches",
    "sft_schedule",
    "sft_totals",
    "significance_loss",
    "stage_parameters",
]


class PolicyLike(Protocol):
    """A `ReportPolicy`, or a wrapper of one that is called in the same way."""

    def __call__(
        self,
        inputs: PolicyInputs,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        captions: CaptionBatch | None = None,
    ) -> PolicyOutput: ...


@dataclass(frozen=True)
class SFTTotals:
    """What the losses of a step are divided by: studies with labels, regions with a box, report tokens by weight,
    caption tokens. To be added over all ranks."""

    studies: float
    boxes: float
    tokens: float
    caption_tokens: float


def sft_totals(batches: Sequence[SFTBatch], cfg: SFTConfig) -> SFTTotals:
    """The totals of some micro-batches; those that do not count have no part in them."""
    counting = [batch for batch in batches if batch.counts]
    return SFTTotals(
        studies=float(sum(batch.targets.known.sum() for batch in counting)),
        boxes=float(sum(batch.targets.maps.any(-1).sum() for batch in counting)),
        tokens=float(sum(_token_weights(batch, cfg).sum() for batch in counting)),
        caption_tokens=float(sum(_caption_weights(batch).sum() for batch in counting)),
    )


def findings_loss(regions: RegionOutput, targets: RegionTargets) -> Tensor:
    """Binary cross-entropy of the findings, summed over findings, mean over regions; plus that of the study's."""
    by_region = F.binary_cross_entropy_with_logits(regions.findings, targets.findings, reduction="none")
    by_study = F.binary_cross_entropy_with_logits(regions.study_findings, targets.study_findings, reduction="none")
    return ((_mean(by_region.sum(-1)) + by_study.sum(-1)) * targets.known).sum()


def significance_loss(regions: RegionOutput, targets: RegionTargets) -> Tensor:
    """Binary cross-entropy of "something is abnormal in this region", mean over regions."""
    losses = F.binary_cross_entropy_with_logits(regions.significance, targets.significance, reduction="none")
    return (_mean(losses) * targets.known).sum()


def attention_loss(regions: RegionOutput, targets: RegionTargets) -> Tensor:
    """Kullback-Leibler divergence of the attention from the boxes' maps, over the regions that have a box."""
    maps = targets.maps
    return (torch.xlogy(maps, maps) - maps * regions.attention.clamp_min(1e-9).log()).sum()


def report_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of texts, nats: tokens [B, T] by their `weights`."""
    return -(logprobs * weights).sum()


def extractor_losses(
    regions: RegionOutput, targets: RegionTargets, cfg: SFTConfig, totals: SFTTotals
) -> dict[str, tuple[float, Tensor]]:
    """Weight and value of the extractor's losses: means over what `totals` counts."""
    return {
        "findings_loss": (cfg.region_weight, findings_loss(regions, targets) / max(1.0, totals.studies)),
        "significance_loss": (cfg.significance_weight, significance_loss(regions, targets) / max(1.0, totals.studies)),
        "attention_loss": (cfg.attention_weight, attention_loss(regions, targets) / max(1.0, totals.boxes)),
    }


def sft_loss(
    model: PolicyLike, batch: SFTBatch, stage: Stage, cfg: SFTConfig, totals: SFTTotals
) -> tuple[Tensor, dict[str, float]]:
    """A micro-batch's part of the step's loss, and of each loss by name ("loss": the whole); to be added up.

    A batch that does not count has a loss of zero, which is as much work for every module.
    """
    if stage == "regions":
        output = model(batch.inputs, captions=batch.captions)
    else:
        output = model(batch.inputs, batch.ids, batch.mask, captions=batch.captions)
    losses = extractor_losses(output.regions, batch.targets, cfg, totals)
    none = output.regions.attention.new_zeros(())
    losses["caption_loss"] = (cfg.caption_weight, none)
    if output.caption_logprobs is not None and batch.captions is not None:
        captions = report_loss(output.caption_logprobs, _caption_weights(batch)) / max(1.0, totals.caption_tokens)
        losses["caption_loss"] = (cfg.caption_weight, captions)
    if output.logprobs is not None:
        losses["report_loss"] = (
            1.0,
            report_loss(output.logprobs, _token_weights(batch, cfg)) / max(1.0, totals.tokens),
        )
    total = torch.stack([weight * loss for weight, loss in losses.values()]).sum() * float(batch.counts)
    parts = {name: float(loss.detach()) * batch.counts for name, (_, loss) in losses.items()}
    return total, {"loss": float(total.detach()), **parts}


def stage_parameters(policy: ReportPolicy, stage: Stage, cfg: Config) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What a stage trains: all that is to be trained of what sees (extractor, backbone), and of the language model. In
    stage "regions" nothing of the language model if there are no captions."""
    seeing = list(policy.extractor.parameters())
    if policy.backbone is not None:
        seeing += policy.backbone.trained_parameters()
    writes = stage == "policy" or (cfg.model.captioning and bool(policy.regions))
    return seeing, trainable_parameters(policy.llm) if writes else []


def _token_weights(batch: SFTBatch, cfg: SFTConfig) -> Tensor:
    return batch.mask + (cfg.finding_token_weight - 1.0) * batch.stated


def _caption_weights(batch: SFTBatch) -> Tensor:
    """Of each caption token [M, T]; none where there are no captions."""
    return torch.zeros(()) if batch.captions is None else batch.captions.mask * float(batch.captioned)


def _mean(losses: Tensor) -> Tensor:
    """Mean over the regions [B, R] -> [B]; 0 where there are none."""
    return losses.sum(-1) / max(1, losses.shape[-1])
