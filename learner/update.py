"""One RL update: trajectories in, mini-batches of optimizer steps, metrics out. Runs on every rank alike.

Contract: every rank is given all trajectories in the same order, lays the same plan, and computes its column of it.
A failed trajectory is masked and counted. The gradient does not depend on the number of ranks or micro-batches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.trajectory import Trajectory
from configs.schema import Config, RLConfig
from learner.advantages import grpo_advantages
from learner.batching import micro_batch_rounds, split_groups
from learner.engine import backward_sum, optimizer_step, reduce_over_ranks
from learner.losses import LossParts, TokenBatch, policy_loss, summarise
from rrg.model.policy import PolicyInputs, ReportPolicy

LoadInputs = Callable[[Sequence[str]], PolicyInputs]


@dataclass(frozen=True)
class MicroBatch:
    """One rank's share of a round: `rows` samples [B, T], `counts` [studies] of them for each study in `inputs`.

    `weighed` is `mask`, or all false where the rank has no samples in the round and only keeps step with the others.
    """

    inputs: PolicyInputs
    counts: Tensor
    ids: Tensor
    mask: Tensor
    weighed: Tensor
    behaviour: Tensor
    advantages: Tensor
    reference: Tensor | None = None
    proximal: Tensor | None = None

    def to(self, device: torch.device | str) -> MicroBatch:
        parts: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in vars(self).items()}
        return MicroBatch(**parts)


def rl_update(
    engine: Any,
    reference: ReportPolicy,
    trajectories: Sequence[Trajectory],
    *,
    load_inputs: LoadInputs,
    config: Config,
    rank: int,
    world_size: int,
    lr: float,
) -> dict[str, float]:
    """Run the mini-batches of one rollout. Returns the metrics of the whole batch, the same on every rank.

    Raises RuntimeError where the loss is not finite.
    """
    advantages = grpo_advantages(
        [t.reward for t in trajectories], [t.study_id for t in trajectories], [t.failed is None for t in trajectories]
    )
    kept = [i for i, t in enumerate(trajectories) if t.failed is None and len(t.token_ids) > 0]
    metrics = trajectory_metrics(trajectories) | {
        "groups": float(advantages.groups),
        "groups_without_spread": float(advantages.flat_groups),
    }
    if not kept:
        return metrics
    usable = [trajectories[i] for i in kept]
    value = advantages.values[kept]
    device = engine.device
    parts = split_groups([t.study_id for t in usable], config.learner.rl.minibatches)
    plan = [
        [
            _assemble([usable[i] for i in rows], value[rows], load_inputs, weighed=weighed)
            for rows, weighed in _column(part, usable, config, rank=rank, world_size=world_size)
        ]
        for part in parts
    ]
    plan = _with_constants(plan, engine, reference, config.rollout.temperature, device)

    sums: Counter[str] = Counter()
    maxima: dict[str, float] = {}
    steps: list[dict[str, float]] = []
    for part, micro_batches in zip(parts, plan, strict=True):
        tokens = sum(len(usable[i].token_ids) for i in part)
        for micro in micro_batches:
            loss = _forward_loss(engine, micro.to(device), config.learner.rl, config.rollout.temperature)
            if not torch.isfinite(loss.loss):
                raise RuntimeError("the RL loss is not finite: stop here rather than spoil the weights")
            backward_sum(engine, loss.loss / tokens)
            sums.update({name: float(total) for name, total in loss.sums.items()})
            maxima = {name: max(maxima.get(name, -math.inf), float(top)) for name, top in loss.maxima.items()}
        steps.append(optimizer_step(engine, lr))
    total = reduce_over_ranks(dict(sums), "sum", device)
    top = reduce_over_ranks(maxima, "max", device)
    last = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
    return metrics | summarise(total, top) | last


def trajectory_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Rewards, reward components, lengths and failures of a batch, before any learning."""
    valid = [t for t in trajectories if t.failed is None]
    metrics = {"samples": float(len(trajectories)), "failed": float(len(trajectories) - len(valid))}
    if not valid:
        return metrics
    rewards = np.array([t.reward for t in valid])
    names = sorted(set.intersection(*(set(t.components) for t in valid)))
    return metrics | {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        **{f"component_{name}": float(np.mean([t.components[name] for t in valid])) for name in names},
        "length_mean": float(np.mean([len(t.token_ids) for t in valid])),
        "length_limit": float(np.mean([t.finish_reason == "length" for t in valid])),
        "unique": len({t.text for t in valid}) / len(valid),
    }


def _column(
    part: Sequence[int], usable: Sequence[Trajectory], config: Config, *, rank: int, world_size: int
) -> list[tuple[list[int], bool]]:
    """This rank's micro-batches of a mini-batch: indices into `usable`, and whether they count.

    A rank without samples in a round computes another rank's with weight zero, for collective calls must line up.
    """
    rounds = micro_batch_rounds(
        [usable[i].prompt_length + len(usable[i].token_ids) for i in part],
        token_budget=config.learner.micro_batch_tokens,
        most=config.learner.micro_batch_sequences,
        world_size=world_size,
    )
    return [([part[k] for k in shares[rank] or shares[0][:1]], bool(shares[rank])) for shares in rounds]


def _assemble(
    samples: Sequence[Trajectory],
    advantages: npt.NDArray[np.float32],
    load_inputs: LoadInputs,
    *,
    weighed: bool,
) -> MicroBatch:
    """Pad samples, those of one study in a row, into a micro-batch on the CPU: it goes to the device when it is used,
    since the images of a whole rollout would take the room of activations there."""
    studies = Counter(t.study_id for t in samples)
    longest = max(len(t.token_ids) for t in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    behaviour = torch.zeros(len(samples), longest)
    for row, t in enumerate(samples):
        count = len(t.token_ids)
        ids[row, :count] = torch.from_numpy(np.asarray(t.token_ids, dtype=np.int64))
        behaviour[row, :count] = torch.from_numpy(np.array(t.logprobs, dtype=np.float32))
        mask[row, :count] = True
    return MicroBatch(
        inputs=load_inputs(list(studies)),
        counts=torch.tensor(list(studies.values())),
        ids=ids,
        mask=mask,
        weighed=mask & weighed,
        behaviour=behaviour,
        advantages=torch.as_tensor(advantages, dtype=torch.float32),
    )


@torch.no_grad()
def _with_constants(
    plan: list[list[MicroBatch]], engine: Any, reference: ReportPolicy, temperature: float, device: torch.device
) -> list[list[MicroBatch]]:
    """Add reference log-probs, and proximal ones from the second mini-batch on.

    In the first mini-batch the current policy *is* the proximal one: its own forward pass gives both.
    """

    def complete(number: int, micro: MicroBatch) -> MicroBatch:
        there = micro.to(device)
        return replace(
            micro,
            reference=_logprobs(reference, there, temperature)[0],
            proximal=_logprobs(engine, there, temperature)[0] if number > 0 else None,
        )

    return [[complete(number, micro) for micro in part] for number, part in enumerate(plan)]


def _forward_loss(engine: Any, micro: MicroBatch, settings: RLConfig, temperature: float) -> LossParts:
    current, entropy = _logprobs(engine, micro, temperature)
    assert micro.reference is not None
    batch = TokenBatch(
        current=current,
        proximal=current.detach() if micro.proximal is None else micro.proximal,
        behaviour=micro.behaviour,
        reference=micro.reference,
        entropy=entropy,
        advantages=micro.advantages,
        mask=micro.weighed,
    )
    return policy_loss(batch, settings)


def _logprobs(model: Any, micro: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
    output = model(micro.inputs, micro.ids, micro.mask, temperature, micro.counts)
    return output.logprobs, output.entropy


def linear_warmup(step: int, peak: float, warmup: int) -> float:
    """The learning rate of RL step `step` (from 0): rising over `warmup` steps, constant afterwards."""
    return peak * min(1.0, (step + 1) / max(1, warmup))
