"""One RL update: trajectories in, mini-batches of optimizer steps, metrics out. Runs on every rank alike.

Contract: every rank is given all trajectories in the same order, lays the same plan, and computes its column of it.
A failed trajectory is masked and counted. The gradient does not depend on the number of ranks or micro-batches.
What the objective is made of is in `learner.objectives`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from actors.trajectory import Trajectory
from configs.schema import Config, RLConfig
from learner.batching import split_groups
from learner.credit import baselines_of, run_policy, with_advantages, with_constants
from learner.engine import backward_sum, optimizer_step, reduce_over_ranks
from learner.microbatch import LoadInputs, LoadTargets, MicroBatch, lay_out
from learner.objectives.advantages import flat_groups, sequence_advantages
from learner.objectives.loss import LossParts, TokenBatch, policy_loss, summarise
from learner.objectives.reduction import Denominators
from learner.sft import SFTTotals, extractor_losses
from rrg.errors import RunStoppedError
from rrg.model.extractor import RegionOutput
from rrg.model.policy import PolicyOutput, ReportPolicy


def rl_update(
    engine: Any,
    reference: ReportPolicy,
    trajectories: Sequence[Trajectory],
    *,
    load_inputs: LoadInputs,
    load_targets: LoadTargets,
    config: Config,
    rank: int,
    world_size: int,
    step: int,
    lr: float,
    kl_coef: float,
) -> dict[str, float]:
    """Run the mini-batches of one rollout. Returns the metrics of the whole batch, the same on every rank.

    Raises RunStoppedError where the loss is not finite.
    """
    rl, device = config.learner.rl, engine.device
    samples = [t for t in trajectories if not t.baseline]
    baselines = baselines_of(trajectories)
    kept = _learnt_from(samples, baselines, rl)
    metrics = {
        **trajectory_metrics(samples),
        **_group_metrics(samples, baselines),
        **staleness([samples[i] for i in kept], step, config.rollout.max_staleness),
        "kl_coef": kl_coef,
    }
    if not kept:
        return metrics
    parts = [[kept[i] for i in part] for part in split_groups([samples[i].study_id for i in kept], rl.minibatches)]
    plan = [
        lay_out(
            part,
            samples,
            config.learner,
            rank=rank,
            world_size=world_size,
            load_inputs=load_inputs,
            load_targets=load_targets if rl.region_weight > 0 else None,
            shared_prompts=reference.shares_prompts,
        )
        for part in parts
    ]
    plan = with_constants(plan, engine, reference, config)
    plan = with_advantages(plan, samples, baselines, rl, kl_coef, device)

    fresh = fresh_tokens(samples, step)
    sums: Counter[str] = Counter()
    maxima: dict[str, float] = {}
    steps: list[dict[str, float]] = []
    for part, micro_batches in zip(parts, plan, strict=True):
        denominators = Denominators(
            tokens=float(sum(len(samples[i].token_ids) for i in part)),
            sequences=float(len(part)),
            max_tokens=config.rollout.max_new_tokens,
        )
        totals = _region_totals(micro_batches, device)
        for micro in micro_batches:
            there = micro.to(device)
            entropy_gradient = rl.entropy_coef != 0.0
            output = run_policy(engine, there, config.rollout.temperature, entropy_gradient=entropy_gradient)
            loss = policy_loss(_token_batch(output, there, fresh.to(device)), rl, kl_coef, denominators)
            whole, seen = _with_regions(loss, output.regions, there, config, totals)
            if not torch.isfinite(whole):
                raise RunStoppedError("the RL loss is not finite (learner.rl.lr, learner.grad_clip)")
            backward_sum(engine, whole)
            sums.update({name: float(total) for name, total in loss.sums.items()})
            # Each mini-batch's are means already.
            sums.update({f"regions/{name}": float(value.detach()) / len(parts) for name, value in seen.items()})
            maxima = {name: max(maxima.get(name, -math.inf), float(top)) for name, top in loss.maxima.items()}
        steps.append(optimizer_step(engine, lr))
    total = reduce_over_ranks(dict(sums), "sum", device)
    regions = {name.removeprefix("regions/"): total.pop(name) for name in list(total) if name.startswith("regions/")}
    top = reduce_over_ranks(maxima, "max", device)
    last = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
    return metrics | summarise(total, top) | regions | last


def trajectory_metrics(samples: Sequence[Trajectory]) -> dict[str, float]:
    """Rewards, reward components, lengths and failures of a batch, before any learning."""
    valid = [t for t in samples if t.failed is None]
    metrics = {"samples": float(len(samples)), "failed": float(len(samples) - len(valid))}
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


def staleness(samples: Sequence[Trajectory], step: int, most: int) -> dict[str, float]:
    """By how many updates the weights that sampled a token lay behind those that step `step` begins with: mean, the
    most, and the share of tokens of each age from 0 to `most`."""
    if not samples:
        return {}
    ages = step - np.concatenate([t.versions for t in samples])
    return {
        "staleness_mean": float(ages.mean()),
        "staleness_max": float(ages.max()),
        **{f"staleness_{age}": float((ages == age).mean()) for age in range(most + 1)},
    }


def _group_metrics(samples: Sequence[Trajectory], baselines: dict[str, float]) -> dict[str, float]:
    groups, flat = flat_groups(*_rewards(samples))
    metrics = {"groups": float(groups), "groups_without_spread": float(flat)}
    return metrics | ({"baseline_reward": float(np.mean(list(baselines.values())))} if baselines else {})


def _learnt_from(samples: Sequence[Trajectory], baselines: dict[str, float], rl: RLConfig) -> list[int]:
    """The places of the samples that count: not failed, and not of a study that teaches nothing where such are left
    out (`drop_flat_groups`, and studies without a baseline to compare with)."""
    kept = [i for i, t in enumerate(samples) if t.failed is None and len(t.token_ids) > 0]
    if rl.drop_flat_groups or rl.advantage == "scst":
        flat = sequence_advantages(rl.advantage, *_rewards(samples), baselines).flat
        kept = [i for i in kept if not flat[i]]
    return kept


def _rewards(samples: Sequence[Trajectory]) -> tuple[list[float], list[str], list[bool]]:
    return [t.reward for t in samples], [t.study_id for t in samples], [t.failed is None for t in samples]


def _region_totals(micro_batches: Sequence[MicroBatch], device: torch.device) -> SFTTotals:
    """What the region losses of a mini-batch are divided by."""
    targets = [micro.targets for micro in micro_batches if micro.targets is not None]
    mine = SFTTotals(
        studies=float(sum(some.known.sum() for some in targets)),
        boxes=float(sum(some.maps.any(-1).sum() for some in targets)),
        tokens=0.0,
        caption_tokens=0.0,
    )
    return SFTTotals(**reduce_over_ranks(asdict(mine), "sum", device)) if targets else mine


def _with_regions(
    loss: LossParts, regions: RegionOutput, micro: MicroBatch, config: Config, totals: SFTTotals
) -> tuple[Tensor, dict[str, Tensor]]:
    """The micro-batch's whole loss, and the region losses in it."""
    if micro.targets is None:
        return loss.loss, {}
    losses = extractor_losses(regions, micro.targets, config.learner.sft, totals)
    weighed = torch.stack([weight * value for weight, value in losses.values()]).sum()
    return loss.loss + config.learner.rl.region_weight * weighed, {name: value for name, (_, value) in losses.items()}


def fresh_tokens(samples: Sequence[Trajectory], step: int) -> Tensor:
    """Which tokens [samples, T] are of the weights that step `step` begins with."""
    rows = [torch.from_numpy(np.asarray(t.versions) == step) for t in samples]
    return pad_sequence(rows, batch_first=True)


def _token_batch(output: PolicyOutput, micro: MicroBatch, fresh: Tensor) -> TokenBatch:
    assert output.logprobs is not None
    assert output.entropy is not None
    assert micro.reference is not None
    assert micro.advantages is not None
    return TokenBatch(
        current=output.logprobs,
        proximal=output.logprobs.detach() if micro.proximal is None else micro.proximal,
        behaviour=micro.behaviour,
        reference=micro.reference,
        entropy=output.entropy,
        advantages=micro.advantages,
        mask=micro.weighed,
        values=output.values,
        old_values=micro.old_values,
        returns=micro.returns,
        fresh=fresh[micro.rows, : micro.mask.shape[1]],
    )


def linear_warmup(step: int, peak: float, warmup: int) -> float:
    """The learning rate of RL step `step` (from 0): rising over `warmup` steps, constant afterwards."""
    return peak * min(1.0, (step + 1) / max(1, warmup))
