"""Which studies the warm start sees when, and how they become tensors.

Contract: `sft_schedule(...)[i]` depends on nothing but its arguments and i, so a killed run goes on at any step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final, Literal

import torch
from torch import Tensor

from configs.schema import SFTConfig
from rrg.data.mentions import findings_in
from rrg.data.sections import sentences
from rrg.data.study import Box, Study
from rrg.errors import UserError
from rrg.model.backbone import FeatureStore
from rrg.model.features import FeatureBatch
from rrg.model.policy import ReportPolicy

Stage = Literal["extractor", "policy"]

# Steps whose studies are sorted by length together.
_BUCKET: Final = 8


@dataclass(frozen=True)
class SFTStep:
    """One optimizer step: its place among all steps, what it trains, on which studies, at which learning rate."""

    index: int
    stage: Stage
    first_of_stage: bool
    study_ids: tuple[str, ...]
    lr: float


@dataclass(frozen=True)
class RegionTargets:
    """What is known about the regions of B studies (R regions, F findings, N patches).

    `findings` [B, R, F], `study_findings` [B, F] and `significance` [B, R] are 0 or 1, and count where `known` [B].
    `inside` bool [B, R, N] marks the patches of a region's box; a region without a box has none.
    """

    findings: Tensor
    study_findings: Tensor
    significance: Tensor
    known: Tensor
    inside: Tensor

    def to(self, device: torch.device | str) -> RegionTargets:
        return RegionTargets(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class SFTBatch:
    """Studies with their reports: `ids` int64 and `mask` bool [B, T]; `stated` marks the tokens that state findings."""

    features: FeatureBatch
    ids: Tensor
    mask: Tensor
    stated: Tensor
    targets: RegionTargets

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_tokens(self) -> int:
        """Report tokens, padding not counted."""
        return int(self.mask.sum())

    def to(self, device: torch.device | str) -> SFTBatch:
        return SFTBatch(**{name: value.to(device) for name, value in vars(self).items()})


class ShuffledCycle:
    """An endless stream over `items`, each pass in an order of its own; `cycle[j]` is the j-th draw."""

    def __init__(self, items: Sequence[str], seed: str) -> None:
        self._items = tuple(items)
        self._order = lru_cache(maxsize=2)(lambda turn: _shuffled(self._items, f"{seed}/{turn}"))

    def __getitem__(self, index: int) -> str:
        turn, place = divmod(index, len(self._items))
        return self._order(turn)[place]


def _shuffled(items: tuple[str, ...], seed: str) -> tuple[str, ...]:
    return tuple(random.Random(seed).sample(items, len(items)))


class SFTSchedule(Sequence[SFTStep]):
    """The steps of stage "extractor", then those of stage "policy"; made one at a time when asked for."""

    def __init__(self, cfg: SFTConfig, studies: Sequence[Study], seed: int) -> None:
        if not studies:
            raise UserError("the warm start needs at least one training study")
        self._cfg = cfg
        self._seed = seed
        self._length = {study.id: len(study.target) for study in studies}
        abnormal = [study.id for study in studies if study.abnormal]
        normal = [study.id for study in studies if not study.abnormal]
        share = cfg.abnormal_fraction if abnormal and normal else float(bool(abnormal))
        self._num_abnormal = round(share * cfg.batch_size)
        self._abnormal = ShuffledCycle(abnormal, f"{seed}/abnormal")
        self._normal = ShuffledCycle(normal, f"{seed}/normal")
        self._extractor_steps = math.ceil(cfg.extractor_epochs * len(studies) / cfg.batch_size)
        self._policy_steps = math.ceil(cfg.epochs * len(studies) / cfg.batch_size)

    def __len__(self) -> int:
        return self._extractor_steps + self._policy_steps

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence overloads int and slice
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._step(index % len(self))

    def _step(self, index: int) -> SFTStep:
        warmup = self._cfg.warmup_steps
        if index < self._extractor_steps:
            lr = sft_lr(index, self._extractor_steps, self._cfg.extractor_lr, warmup)
            return SFTStep(index, "extractor", index == 0, self._draw(index), lr)
        step = index - self._extractor_steps
        lr = sft_lr(step, self._policy_steps, self._cfg.lr, warmup)
        return SFTStep(index, "policy", step == 0, self._bucketed(step), lr)

    def _draw(self, index: int) -> tuple[str, ...]:
        """The studies of step `index` before any sorting."""
        abnormal = self._num_abnormal
        normal = self._cfg.batch_size - abnormal
        ids = [self._abnormal[index * abnormal + i] for i in range(abnormal)]
        return (*ids, *(self._normal[index * normal + i] for i in range(normal)))

    def _bucketed(self, step: int) -> tuple[str, ...]:
        """Step `step` of stage "policy", after `_BUCKET` neighbouring draws were sorted by length: less padding."""
        group, place = divmod(step, _BUCKET)
        steps = range(group * _BUCKET, min((group + 1) * _BUCKET, self._policy_steps))
        drawn = [study for other in steps for study in self._draw(self._extractor_steps + other)]
        drawn.sort(key=self._length.__getitem__)
        place = random.Random(f"{self._seed}/bucket/{group}").sample(range(len(steps)), len(steps))[place]
        size = self._cfg.batch_size
        return tuple(drawn[place * size : (place + 1) * size])


def sft_schedule(cfg: SFTConfig, studies: Sequence[Study], seed: int) -> SFTSchedule:
    """Draws `cfg.abnormal_fraction` of each batch from the abnormal `studies`, the rest from the others."""
    return SFTSchedule(cfg, studies, seed)


def sft_lr(step: int, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine to 0 at step `total`."""
    warmup = min(warmup, total // 2)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def collate(policy: ReportPolicy, store: FeatureStore, studies: Sequence[Study], max_tokens: int) -> SFTBatch:
    """Everything that `sft_loss` needs of some studies, on the CPU; reports are cut at `max_tokens`."""
    features = store.load_batch(studies)
    parts = [findings_first(study.target) for study in studies]
    ids, mask = policy.tokenize([" ".join(part for part in pair if part) for pair in parts], max_tokens)
    # The findings come first: they are as many tokens as they have alone, without the end token.
    stated = torch.tensor([len(policy.tokenizer(first, add_special_tokens=False)["input_ids"]) for first, _ in parts])
    targets = region_targets(studies, policy.regions, policy.findings, store.grid, features.values.shape[1])
    return SFTBatch(features, ids, mask, mask & (torch.arange(ids.shape[1]) < stated[:, None]), targets)


@cache
def findings_first(report: str) -> tuple[str, str]:
    """The sentences of a cleaned report that state a finding, and the others, each in their order.

    The order of a report's sentences is the radiologist's habit. With a finding anywhere, each is improbable at any one
    place, and the most probable report is always a normal one; with findings first, the image decides the first word.
    """
    stating = [part for part in sentences(report) if findings_in(part)]
    others = [part for part in sentences(report) if not findings_in(part)]
    return "".join(f"{part} . " for part in stating).strip(), "".join(f"{part} . " for part in others).strip()


def region_targets(
    studies: Sequence[Study], regions: Sequence[str], findings: Sequence[str], grid: int, patches: int
) -> RegionTargets:
    """The labels and boxes of `studies` as tensors; boxes lie in the first frontal image, see `RegionTargets`."""
    column = {name: index for index, name in enumerate(findings)}
    by_region = torch.zeros(len(studies), len(regions), len(findings))
    by_study = torch.zeros(len(studies), len(findings))
    known = torch.tensor([study.findings is not None and study.region_findings is not None for study in studies])
    inside = torch.zeros(len(studies), len(regions), patches, dtype=torch.bool)
    for row, study in enumerate(studies):
        by_study[row, [column[name] for name in study.findings or ()]] = 1.0
        for index, region in enumerate(regions):
            by_region[row, index, [column[name] for name in (study.region_findings or {}).get(region, ())]] = 1.0
        first = next((i for i, image in enumerate(study.images) if image.view == "frontal"), None)
        if study.boxes is not None and first is not None:
            start = first * grid**2
            inside[row, :, start : start + grid**2] = _patches_inside(study.boxes, regions, grid)
    return RegionTargets(by_region, by_study, by_region.amax(-1), known, inside)


def _patches_inside(boxes: Mapping[str, Box], regions: Sequence[str], grid: int) -> Tensor:
    """Bool [R, grid * grid]: the patches that a region's box touches."""
    low = torch.arange(grid) / grid
    high = low + 1 / grid
    rows = []
    for region in regions:
        if region in boxes:
            box = boxes[region]
            across = (low < box.x1) & (high > box.x0)
            down = (low < box.y1) & (high > box.y0)
            rows.append((down[:, None] & across[None, :]).flatten())
        else:
            rows.append(torch.zeros(grid**2, dtype=torch.bool))
    return torch.stack(rows)
