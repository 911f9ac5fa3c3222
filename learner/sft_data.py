"""Which studies the warm start sees when, and how they become tensors.

Contract: `sft_schedule(...)[i]` depends on nothing but its arguments and i, so a warm start that begins again gives the
same numbers; so does what `sft_micro_batches` makes of it. A step is split by a token budget into the same number of
micro-batches for every rank; `learner.sft` divides by totals of the whole step, so that the split never changes the
gradient.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import torch
from torch import Tensor

from configs.schema import Config, SFTConfig
from learner.batching import micro_batch_rounds
from learner.sft_texts import Captions, choose_captions, findings_first, study_text
from rrg.data.study import Study
from rrg.errors import UserError
from rrg.model.backbone import ImageStore
from rrg.model.boxes import box_maps
from rrg.model.evidence import first_frontal
from rrg.model.policy import CaptionBatch, PolicyInputs, ReportPolicy

Stage = Literal["regions", "policy"]

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
    `maps` [B, R, N] are the maps of the regions' boxes (`rrg.model.boxes`); all zero for a region without a box.
    """

    findings: Tensor
    study_findings: Tensor
    significance: Tensor
    known: Tensor
    maps: Tensor

    def to(self, device: torch.device | str) -> RegionTargets:
        return RegionTargets(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class SFTBatch:
    """Studies with their reports: `ids` int64 and `mask` bool [B, T]; `stated` marks the tokens that state findings.

    `captions` is None without captioning. `captioned` is False where no region of the studies has one: a stand-in then
    keeps the language model and the region tokens in the gradient, as the ranks' collective calls want it, and is to
    weigh nothing. `counts` is False where a rank has nothing left to do and only keeps
    step with the others: its loss is to be zero.
    """

    inputs: PolicyInputs
    ids: Tensor
    mask: Tensor
    stated: Tensor
    targets: RegionTargets
    captions: CaptionBatch | None = None
    captioned: bool = True
    counts: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> SFTBatch:
        return SFTBatch(
            self.inputs.to(device),
            self.ids.to(device),
            self.mask.to(device),
            self.stated.to(device),
            self.targets.to(device),
            None if self.captions is None else self.captions.to(device),
            self.captioned,
            self.counts,
        )


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
    """The steps of stage "regions" (`regions_steps` of them), then those of stage "policy"; made one at a time when
    asked for."""

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
        self.regions_steps = math.ceil(cfg.regions_epochs * len(studies) / cfg.batch_size)
        self._policy_steps = math.ceil(cfg.epochs * len(studies) / cfg.batch_size)

    def __len__(self) -> int:
        return self.regions_steps + self._policy_steps

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence overloads int and slice
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._step(index % len(self))

    def _step(self, index: int) -> SFTStep:
        warmup = self._cfg.warmup_steps
        if index < self.regions_steps:
            lr = sft_lr(index, self.regions_steps, self._cfg.regions_lr, warmup)
            return SFTStep(index, "regions", index == 0, self._draw(index), lr)
        step = index - self.regions_steps
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
        drawn = [study for other in steps for study in self._draw(self.regions_steps + other)]
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


def sft_micro_batches(
    policy: ReportPolicy,
    store: ImageStore,
    studies: Sequence[Study],
    cfg: Config,
    step: SFTStep,
    rank: int = 0,
    world_size: int = 1,
) -> list[SFTBatch]:
    """A rank's micro-batches of a step, on the CPU; `studies` are all of the step's.

    A study costs its prompt, in stage "policy" its report, and its captions with their prompts. A rank without studies
    in a round gets another rank's, with `counts` False, for collective calls must line up.
    """
    limit = cfg.rollout.max_new_tokens
    count = cfg.learner.sft.captions_per_study if cfg.model.captioning and policy.regions else 0
    chosen = [choose_captions(study, policy.regions, count, f"{cfg.seed}/{step.index}") for study in studies]
    costs = [_cost(policy, study, captions, step.stage, limit) for study, captions in zip(studies, chosen, strict=True)]
    learner = cfg.learner
    rounds = micro_batch_rounds(
        costs, token_budget=learner.micro_batch_tokens, most=learner.micro_batch_sequences, world_size=world_size
    )
    batches = []
    for shares in rounds:
        rows = shares[rank] or shares[0][:1]
        picked, captions = [studies[row] for row in rows], [chosen[row] for row in rows]
        batch = collate(policy, store, picked, captions, limit, captioning=count > 0, counts=bool(shares[rank]))
        batches.append(batch)
    return batches


def collate(
    policy: ReportPolicy,
    store: ImageStore,
    studies: Sequence[Study],
    captions: Sequence[Captions],
    max_tokens: int,
    *,
    captioning: bool,
    counts: bool = True,
) -> SFTBatch:
    """Everything that `sft_loss` needs of some studies; reports and captions are cut at `max_tokens`."""
    parts = [findings_first(study.target) for study in studies]
    ids, mask = policy.tokenize([study_text(study) for study in studies], max_tokens)
    # The findings come first: they are as many tokens as they have alone, without the end token.
    stated = torch.tensor([len(policy.tokenizer(first, add_special_tokens=False)["input_ids"]) for first, _ in parts])
    return SFTBatch(
        inputs=policy.inputs(studies, store),
        ids=ids,
        mask=mask,
        stated=mask & (torch.arange(ids.shape[1]) < stated[:, None]),
        targets=region_targets(studies, policy.regions, policy.findings, store.grid),
        captions=_caption_batch(policy, captions, max_tokens) if captioning else None,
        captioned=any(captions),
        counts=counts,
    )


def _caption_batch(policy: ReportPolicy, captions: Sequence[Captions], max_tokens: int) -> CaptionBatch:
    """Where nothing is said of any region, an empty text about the first region of the first study."""
    rows = [(row, name, text) for row, texts in enumerate(captions) for name, text in texts.items()]
    rows = rows or [(0, policy.regions[0], "")]
    column = {name: index for index, name in enumerate(policy.regions)}
    ids, mask = policy.tokenize([text for _, _, text in rows], max_tokens)
    study, region = torch.tensor([[row, column[name]] for row, name, _ in rows]).T
    return CaptionBatch(study, region, ids, mask)


def _cost(policy: ReportPolicy, study: Study, captions: Captions, stage: Stage, max_tokens: int) -> int:
    """Tokens of a study in a step, about as they are padded."""
    cost = len(policy.prompt_tokens(study))
    if stage == "policy":
        cost += _tokens(policy, study_text(study), max_tokens)
    before = 1 + len(policy.caption_ids)
    return cost + sum(before + _tokens(policy, text, max_tokens) for text in captions.values())


def _tokens(policy: ReportPolicy, text: str, max_tokens: int) -> int:
    return min(max_tokens, 1 + len(policy.tokenizer(text, add_special_tokens=False)["input_ids"]))


def region_targets(
    studies: Sequence[Study], regions: Sequence[str], findings: Sequence[str], grid: int
) -> RegionTargets:
    """The labels and boxes of `studies` as tensors; boxes lie in the first frontal image, see `RegionTargets`."""
    column = {name: index for index, name in enumerate(findings)}
    by_region = torch.zeros(len(studies), len(regions), len(findings))
    by_study = torch.zeros(len(studies), len(findings))
    known = torch.tensor([study.findings is not None and study.region_findings is not None for study in studies])
    maps = torch.zeros(len(studies), len(regions), max(len(study.images) for study in studies) * grid**2)
    for row, study in enumerate(studies):
        by_study[row, [column[name] for name in study.findings or ()]] = 1.0
        for index, region in enumerate(regions):
            by_region[row, index, [column[name] for name in (study.region_findings or {}).get(region, ())]] = 1.0
        first = first_frontal(study)
        boxed = [index for index, region in enumerate(regions) if region in (study.boxes or {})]
        if study.boxes is not None and first is not None and boxed:
            boxes = [study.boxes[regions[index]] for index in boxed]
            corners = torch.tensor([[box.x0, box.y0, box.x1, box.y1] for box in boxes])
            maps[row, boxed, first * grid**2 : (first + 1) * grid**2] = box_maps(corners, grid)
    return RegionTargets(by_region, by_study, by_region.any(-1).float(), known, maps)
