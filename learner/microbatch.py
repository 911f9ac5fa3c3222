"""Sampled reports as tensors: a mini-batch laid into micro-batches, of which every rank makes its column.

Contract: the same plan on every rank. A study's region losses count once a mini-batch: in the micro-batch that holds
its first sample there. Tensors are made on the CPU and go to the device when they are used, since the images of a whole
rollout would take the room of activations there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.trajectory import Trajectory
from configs.schema import LearnerConfig
from learner.batching import Round, micro_batch_rounds, study_rounds
from learner.sft_data import RegionTargets
from rrg.model.policy import PolicyInputs

LoadInputs = Callable[[Sequence[str]], PolicyInputs]
LoadTargets = Callable[[Sequence[str]], RegionTargets]


@dataclass(frozen=True)
class MicroBatch:
    """One rank's share of a round: samples [B, T], `counts` [studies] of them for each study in `inputs`.

    `rows` [B] are the samples' places in the batch of the step. `weighed` is `mask`, or all false where the rank has no
    samples in the round and only keeps step with the others. `targets` are there where the regions are learnt of. The
    rest is constant in the update and filled in before its first step: `proximal` may be left out where the current
    policy is the proximal one, `old_values` and `returns` [B, T] come with a value head.
    """

    inputs: PolicyInputs
    counts: Tensor
    rows: Tensor
    ids: Tensor
    mask: Tensor
    weighed: Tensor
    behaviour: Tensor
    targets: RegionTargets | None
    reference: Tensor | None = None
    proximal: Tensor | None = None
    old_values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    def to(self, device: torch.device | str) -> MicroBatch:
        parts: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in vars(self).items()}
        return MicroBatch(**parts)


def lay_out(
    part: Sequence[int],
    samples: Sequence[Trajectory],
    learner: LearnerConfig,
    *,
    rank: int,
    world_size: int,
    load_inputs: LoadInputs,
    load_targets: LoadTargets | None,
    shared_prompts: bool,
) -> list[MicroBatch]:
    """This rank's micro-batches of a mini-batch, whose samples have the places `part` in `samples`.

    `shared_prompts`: the policy computes a study's prompt once a micro-batch, and no padding.
    A rank without samples in a round computes another rank's with weight zero, for collective calls must line up.
    """
    rounds = _rounds([samples[i] for i in part], learner, world_size, shared_prompts)
    first = {samples[i].study_id: i for i in reversed(part)}
    made = []
    for shares in rounds:
        rows = [part[k] for k in shares[rank] or shares[0][:1]]
        weighed = bool(shares[rank])
        micro = _assemble(rows, samples, load_inputs, weighed=weighed)
        if load_targets is not None:
            studies = list(dict.fromkeys(samples[i].study_id for i in rows))
            counts = torch.tensor([weighed and first[study] in rows for study in studies])
            micro = replace(micro, targets=_counting(load_targets(studies), counts))
        made.append(micro)
    return made


def _rounds(
    samples: Sequence[Trajectory], learner: LearnerConfig, world_size: int, shared_prompts: bool
) -> list[Round]:
    prompts, lengths = [t.prompt_length for t in samples], [len(t.token_ids) for t in samples]
    budget, most = learner.micro_batch_tokens, learner.micro_batch_sequences
    if shared_prompts:
        studies = [t.study_id for t in samples]
        return study_rounds(studies, prompts, lengths, token_budget=budget, most=most, world_size=world_size)
    whole = [prompt + length for prompt, length in zip(prompts, lengths, strict=True)]
    return micro_batch_rounds(whole, token_budget=budget, most=most, world_size=world_size)


def _assemble(
    rows: Sequence[int], samples: Sequence[Trajectory], load_inputs: LoadInputs, *, weighed: bool
) -> MicroBatch:
    """Pads samples, those of one study in a row."""
    chosen = [samples[row] for row in rows]
    studies = Counter(t.study_id for t in chosen)
    longest = max(len(t.token_ids) for t in chosen)
    ids = torch.zeros(len(chosen), longest, dtype=torch.long)
    mask = torch.zeros(len(chosen), longest, dtype=torch.bool)
    behaviour = torch.zeros(len(chosen), longest)
    for row, t in enumerate(chosen):
        count = len(t.token_ids)
        ids[row, :count] = torch.from_numpy(np.asarray(t.token_ids, dtype=np.int64))
        behaviour[row, :count] = torch.from_numpy(np.array(t.logprobs, dtype=np.float32))
        mask[row, :count] = True
    return MicroBatch(
        inputs=load_inputs(list(studies)),
        counts=torch.tensor(list(studies.values())),
        rows=torch.tensor(rows),
        ids=ids,
        mask=mask,
        weighed=mask & weighed,
        behaviour=behaviour,
        targets=None,
    )


def _counting(targets: RegionTargets, counts: Tensor) -> RegionTargets:
    """`targets` of which only those studies count where `counts` is true."""
    return replace(targets, known=targets.known & counts, maps=targets.maps * counts[:, None, None])
