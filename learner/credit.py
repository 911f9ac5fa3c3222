"""What the tokens of an update are worth: log-probs and values that stay constant in it, and the advantages.

Contract: statistics are those of all samples of the step, added over micro-batches and ranks, so that neither the split
nor the number of ranks changes an advantage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from actors.trajectory import Trajectory
from configs.check_rl import TOKEN_ADVANTAGES
from configs.schema import Config, RLConfig
from learner.engine import add_over_ranks
from learner.microbatch import MicroBatch
from learner.objectives.advantages import sequence_advantages
from learner.objectives.kl import kl_estimates
from learner.objectives.returns import discounted_returns, gae, moments, token_rewards, whiten
from rrg.model.policy import PolicyOutput, ReportPolicy

Plan = list[list[MicroBatch]]


def run_policy(model: Any, micro: MicroBatch, temperature: float, *, entropy_gradient: bool = False) -> PolicyOutput:
    """The reports of `micro` under `model`: a `ReportPolicy` or an engine around one."""
    output: PolicyOutput = model(
        micro.inputs, micro.ids, micro.mask, temperature, micro.counts, entropy_gradient=entropy_gradient
    )
    return output


@torch.no_grad()
def with_constants(plan: Plan, engine: Any, reference: ReportPolicy, config: Config) -> Plan:
    """Adds what the reference and the learner's policy at the start of the update say, on the learner's device.

    In the first mini-batch the current policy *is* the proximal one: its own forward pass in the update gives both, and
    this one is left out where nothing else of it is needed.
    """
    rl, temperature = config.learner.rl, config.rollout.temperature
    always = rl.kl.place == "reward" or rl.advantage == "ppo"

    def complete(number: int, micro: MicroBatch) -> MicroBatch:
        there = micro.to(engine.device)
        micro = replace(micro, reference=run_policy(reference, there, temperature).logprobs)
        if number == 0 and not always:
            return micro
        now = run_policy(engine, there, temperature)
        return replace(micro, proximal=now.logprobs, old_values=now.values)

    return [[complete(number, micro) for micro in part] for number, part in enumerate(plan)]


def baselines_of(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The reward of each study's greedy report, where it has one."""
    return {t.study_id: t.reward for t in trajectories if t.baseline and t.failed is None}


@torch.no_grad()
def with_advantages(
    plan: Plan,
    samples: Sequence[Trajectory],
    baselines: Mapping[str, float],
    rl: RLConfig,
    kl_coef: float,
    device: torch.device,
) -> Plan:
    """Adds the advantages (and returns) of a plan that has its constants; `rows` of the plan are places in `samples`.

    With kl.place=reward the KL at each token (k1 of the proximal policy) is taken from the rewards first.
    """
    if rl.advantage in TOKEN_ADVANTAGES:
        return _of_tokens(plan, samples, rl, kl_coef, device)
    rewards = torch.tensor([t.reward for t in samples], dtype=torch.float64)
    if rl.kl.place == "reward":
        # The sum over a report's tokens; every report is weighed in one micro-batch of one rank.
        spent = torch.zeros(len(samples), dtype=torch.float64, device=device)
        for micro in _all(plan):
            spent[micro.rows] += torch.where(micro.weighed.to(device), _kl(micro), 0.0).double().sum(-1)
        rewards = rewards - kl_coef * add_over_ranks(spent).cpu()
    values = torch.from_numpy(
        sequence_advantages(
            rl.advantage,
            rewards.tolist(),
            [t.study_id for t in samples],
            [t.failed is None for t in samples],
            baselines,
        ).values
    )
    return _each(plan, lambda micro: replace(micro, advantages=values[micro.rows, None].expand(micro.mask.shape)))


def _of_tokens(plan: Plan, samples: Sequence[Trajectory], rl: RLConfig, kl_coef: float, device: torch.device) -> Plan:
    """ "reinforce_pp": whitened rewards to go. "ppo": whitened GAE, and what the value head is to learn."""
    rewards = torch.tensor([0.0 if t.failed else t.reward for t in samples])

    def credited(micro: MicroBatch) -> MicroBatch:
        mask = micro.mask.to(device)
        kl = _kl(micro) if rl.kl.place == "reward" else torch.zeros(mask.shape, device=device)
        earned = token_rewards(rewards[micro.rows].to(device), kl, mask, kl_coef)
        if rl.advantage == "reinforce_pp":
            return replace(micro, advantages=discounted_returns(earned, mask, rl.value.gamma))
        assert micro.old_values is not None
        advantages, returns = gae(earned, micro.old_values, mask, rl.value.gamma, rl.value.gae_lambda)
        return replace(micro, advantages=advantages, returns=returns)

    plan = _each(plan, credited)
    local = torch.zeros(3, dtype=torch.float64, device=device)
    for micro in _all(plan):
        assert micro.advantages is not None
        local += moments(micro.advantages, micro.weighed.to(device))
    whole = add_over_ranks(local)

    def whitened(micro: MicroBatch) -> MicroBatch:
        assert micro.advantages is not None
        return replace(micro, advantages=whiten(micro.advantages, micro.mask.to(device), whole))

    return _each(plan, whitened)


def _kl(micro: MicroBatch) -> Tensor:
    assert micro.proximal is not None
    assert micro.reference is not None
    return kl_estimates(micro.proximal, micro.reference)[0]


def _all(plan: Plan) -> list[MicroBatch]:
    return [micro for part in plan for micro in part]


def _each(plan: Plan, change: Callable[[MicroBatch], MicroBatch]) -> Plan:
    return [[change(micro) for micro in part] for part in plan]
