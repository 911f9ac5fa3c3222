"""Rewards, returns and advantages of tokens: against plain loops, and whitened over micro-batches."""

from __future__ import annotations

import pytest
import torch

from configs.schema import ValueConfig
from learner.objectives.returns import discounted_returns, gae, moments, token_rewards, whiten

MASK = torch.tensor([[True, True, True, False], [True, True, True, True], [True, False, False, False]])


def random(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_reward_stands_at_the_last_token_and_every_token_pays_its_kl() -> None:
    kl = torch.full((3, 4), 0.5, dtype=torch.float64)
    out = token_rewards(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), kl, MASK, coef=0.2)
    expected = torch.tensor([[-0.1, -0.1, 0.9, 0], [-0.1, -0.1, -0.1, 1.9], [2.9, 0, 0, 0]], dtype=torch.float64)
    assert torch.allclose(out, expected)


def test_a_report_that_does_not_count_has_no_reward() -> None:
    nothing = torch.zeros_like(MASK)
    assert not token_rewards(torch.ones(3), torch.ones(3, 4), nothing, coef=0.2).any()


def test_the_undiscounted_return_is_the_reward_minus_the_kl_from_there_on() -> None:
    kl = random(0).abs()
    rewards = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    out = discounted_returns(token_rewards(rewards, kl, MASK, coef=0.3), MASK, gamma=1.0)
    for row, length in enumerate(MASK.sum(-1).tolist()):
        for t in range(4):
            expected = float(rewards[row]) - 0.3 * float(kl[row, t:length].sum()) if t < length else 0.0
            assert float(out[row, t]) == pytest.approx(expected)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.9, 0.0), (0.97, 1.0)])
def test_gae_equals_the_sum_of_its_definition(gamma: float, lam: float) -> None:
    rewards, values = random(1), random(2)
    advantages, returns = gae(rewards, values, MASK, gamma, lam)
    for row, length in enumerate(MASK.sum(-1).tolist()):
        ahead = [*values[row, :length].tolist(), 0.0]
        deltas = [float(rewards[row, t]) + gamma * ahead[t + 1] - ahead[t] for t in range(length)]
        for t in range(4):
            expected = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length))
            assert float(advantages[row, t]) == pytest.approx(expected)
            assert float(returns[row, t]) == pytest.approx(expected + ahead[t] if t < length else 0.0)


def test_with_lambda_one_the_value_head_learns_the_discounted_return() -> None:
    rewards, values = random(1), random(2)
    assert torch.allclose(gae(rewards, values, MASK, 0.9, 1.0)[1], discounted_returns(rewards, MASK, 0.9))


def test_whitening_by_added_moments_is_whitening_of_the_whole_batch() -> None:
    values = random(3) * 5 + 100
    added = moments(values[:1], MASK[:1]) + moments(values[1:], MASK[1:])
    out = torch.cat([whiten(values[:1], MASK[:1], added), whiten(values[1:], MASK[1:], added)])
    counted = values[MASK]
    assert torch.allclose(out[MASK], (counted - counted.mean()) / counted.std(correction=0), atol=1e-7)
    assert not out[~MASK].any()


def test_values_without_spread_are_whitened_to_nothing() -> None:
    values = torch.full((3, 4), 0.1)
    out = whiten(values, MASK, moments(values, MASK))
    assert out.abs().max() < 1e-3
    assert not whiten(values, torch.zeros_like(MASK), torch.zeros(3, dtype=torch.float64)).any()


def test_while_the_critic_knows_nothing_an_ending_is_not_blamed_for_the_mean_reward() -> None:
    rewards, mask = -2.0 + 0.3 * random(4)[:, 0], torch.ones(3, 40, dtype=torch.bool)
    earned = token_rewards(rewards, torch.zeros(3, 40), mask, coef=0.0)
    ends = {}
    for lam in (ValueConfig().gae_lambda, 0.95):
        advantages = gae(earned, torch.zeros_like(earned), mask, 1.0, lam)[0]
        ends[lam] = whiten(advantages, mask, moments(advantages, mask))[:, -1]
    assert (ends[0.95] < -1.5).all()  # what a default below 1 would teach: never end
    assert float(ends[1.0].mean()) == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(ends[1.0].argsort(), rewards.argsort())
