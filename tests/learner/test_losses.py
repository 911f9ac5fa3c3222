"""The RL loss: against plain re-derivations and numerical gradients, and whatever the split into micro-batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from configs.schema import RLConfig
from learner.advantages import grpo_advantages
from learner.batching import micro_batch_rounds, split_groups
from learner.losses import TokenBatch, kl_estimates, policy_loss, summarise

SETTINGS = RLConfig(clip_low=0.2, clip_high=0.28, kl_coef=0.05, importance_cap=1.5)


def batch(rows: int = 6, tokens: int = 7, seed: int = 0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)

    def near(base: torch.Tensor, scale: float) -> torch.Tensor:
        return base + scale * torch.randn(rows, tokens, generator=generator, dtype=torch.float64)

    proximal = -3 * torch.rand(rows, tokens, generator=generator, dtype=torch.float64) - 0.1
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    return TokenBatch(
        current=near(proximal, 0.3),
        proximal=proximal,
        behaviour=near(proximal, 0.3),
        reference=near(proximal, 0.5),
        entropy=torch.rand(rows, tokens, generator=generator, dtype=torch.float64),
        advantages=torch.randn(rows, generator=generator, dtype=torch.float64),
        mask=torch.arange(tokens) < lengths[:, None],
    )


def with_current(source: TokenBatch, current: torch.Tensor) -> TokenBatch:
    return TokenBatch(**{**vars(source), "current": current})


def test_the_loss_equals_a_plain_loop_over_tokens() -> None:
    b = batch()
    total = 0.0
    for row in range(6):
        for t in range(7):
            if not b.mask[row, t]:
                continue
            current, proximal = float(b.current[row, t]), float(b.proximal[row, t])
            weight = min(math.exp(proximal - float(b.behaviour[row, t])), 1.5)
            ratio, advantage = math.exp(current - proximal), float(b.advantages[row])
            surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
            total += -weight * surrogate + 0.05 * 0.5 * (current - float(b.reference[row, t])) ** 2
    assert float(policy_loss(b, SETTINGS).loss) == pytest.approx(total, abs=1e-9)


def test_the_gradient_equals_the_numerical_one() -> None:
    b = batch()
    assert torch.autograd.gradcheck(
        lambda current: policy_loss(with_current(b, current), SETTINGS).loss, b.current.clone().requires_grad_()
    )


def test_the_split_into_micro_batches_changes_neither_loss_nor_metrics() -> None:
    b = batch(rows=8)
    whole = policy_loss(b, SETTINGS)
    parts = [
        policy_loss(TokenBatch(**{k: v[rows] for k, v in vars(b).items()}), SETTINGS)
        for rows in ([0, 5], [1, 2, 3], [4, 6, 7])
    ]
    assert float(sum(part.loss for part in parts)) == pytest.approx(float(whole.loss), abs=1e-9)
    summed = {name: float(sum(part.sums[name] for part in parts)) for name in whole.sums}
    largest = {name: max(float(part.maxima[name]) for part in parts) for name in whole.maxima}
    expected = summarise({k: float(v) for k, v in whole.sums.items()}, {k: float(v) for k, v in whole.maxima.items()})
    assert summarise(summed, largest) == pytest.approx(expected, abs=1e-9)


def test_masked_tokens_have_no_influence() -> None:
    b = batch()
    spoilt = torch.where(b.mask, b.current, torch.full_like(b.current, -1e4))
    assert float(policy_loss(with_current(b, spoilt), SETTINGS).loss) == float(policy_loss(b, SETTINGS).loss)


def test_a_clipped_token_has_no_surrogate_gradient() -> None:
    b = batch()
    far = (b.proximal + 1.0).requires_grad_()
    settings = RLConfig(kl_coef=0.0)
    policy_loss(with_current(b, far), settings).loss.backward()
    assert far.grad is not None
    gains = b.mask & (b.advantages[:, None] > 0)
    assert gains.any()
    assert (far.grad[gains] == 0).all()


def test_the_gradient_of_k2_points_along_the_true_kl() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    true_kl = (logits.softmax(0) * (logits.log_softmax(0) - reference)).sum()
    (exact,) = torch.autograd.grad(true_kl, logits)
    # The expectation over tokens of the estimator's gradient, tokens drawn from the current policy.
    expected = torch.zeros(5, dtype=torch.float64)
    for token in range(5):
        k2 = kl_estimates(logits.log_softmax(0)[token], reference[token])[1]
        expected += logits.softmax(0)[token].detach() * torch.autograd.grad(k2, logits)[0]
    assert torch.allclose(expected, exact, atol=1e-9)


def test_advantages_compare_samples_of_one_study_only() -> None:
    out = grpo_advantages([1.0, 3.0, 10.0, 10.0], ["a", "a", "b", "b"], [True] * 4)
    assert out.values.tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert (out.groups, out.flat_groups) == (2, 1)


def test_a_failed_sample_is_left_out_and_never_counts_as_zero() -> None:
    out = grpo_advantages([1.0, 3.0, float("nan")], ["a"] * 3, [True, True, False])
    assert out.values.tolist() == [-1.0, 1.0, 0.0]


def test_every_sequence_is_in_exactly_one_micro_batch_whatever_the_ranks() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 37).tolist()
    for world_size in (1, 2, 3):
        rounds = micro_batch_rounds(
            [39 + length for length in lengths], token_budget=600, most=5, world_size=world_size
        )
        flat = [index for shares in rounds for share in shares for index in share]
        assert sorted(flat) == list(range(37))
        for share in (share for shares in rounds for share in shares if share):
            assert len(share) * (39 + max(lengths[i] for i in share)) <= 600
            assert len(share) <= 5


def test_mini_batches_keep_the_samples_of_a_study_together() -> None:
    groups = ["a", "a", "b", "b", "c", "c"]
    assert split_groups(groups, 2) == [[0, 1, 4, 5], [2, 3]]
