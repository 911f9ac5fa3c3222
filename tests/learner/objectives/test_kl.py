"""The KL: which gradient its estimators have, and how its coefficient adapts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learner.objectives.kl import adapt_kl, kl_estimates, kl_penalty


def setting() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a policy over 5 tokens, log-probs of a reference, and the gradient of the true KL between them."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    kl = (logits.softmax(0) * (logits.log_softmax(0) - reference)).sum()
    return logits, reference, torch.autograd.grad(kl, logits)[0]


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_penalty_has_the_gradient_of_the_reverse_kl_in_expectation(estimator: str) -> None:
    logits, reference, exact = setting()
    current = logits.log_softmax(0)
    penalties = kl_penalty(estimator, current, reference, current.detach())
    # Tokens are drawn from the policy: each one's gradient counts by its probability.
    (expected,) = torch.autograd.grad((current.detach().exp() * penalties).sum(), logits)
    assert torch.allclose(expected, exact, atol=1e-12)


def test_k3_corrects_for_tokens_that_an_earlier_policy_sampled() -> None:
    logits, reference, exact = setting()
    generator = torch.Generator().manual_seed(2)
    proximal = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    penalties = kl_penalty("k3", logits.log_softmax(0), reference, proximal)
    (expected,) = torch.autograd.grad((proximal.exp() * penalties).sum(), logits)
    assert torch.allclose(expected, exact, atol=1e-12)


def test_k1_in_the_loss_would_have_no_gradient_on_average_and_is_refused() -> None:
    logits, reference, _ = setting()
    current = logits.log_softmax(0)
    k1 = kl_estimates(current, reference)[0]
    (expected,) = torch.autograd.grad((current.detach().exp() * k1).sum(), logits)
    assert torch.allclose(expected, torch.zeros(5, dtype=torch.float64), atol=1e-12)
    with pytest.raises(ValueError, match="k2 or k3"):
        kl_penalty("k1", current, reference, current)


def test_k1_and_k3_are_the_kl_in_expectation_and_k3_is_never_negative() -> None:
    logits, reference, _ = setting()
    current = logits.detach().log_softmax(0)
    k1, _, k3 = kl_estimates(current, reference)
    exact = (current.exp() * (current - reference)).sum()
    assert (current.exp() * k1).sum() == pytest.approx(float(exact))
    assert (current.exp() * k3).sum() == pytest.approx(float(exact))
    assert (k3 >= 0).all()
    assert (k1 < 0).any()


@pytest.mark.parametrize(
    ("observed", "factor"),
    [(0.05, 1.0), (0.055, 1.01), (0.045, 0.99), (5.0, 1.02), (0.0, 0.98)],
)
def test_the_coefficient_rises_and_falls_with_the_kl_by_a_bounded_share(observed: float, factor: float) -> None:
    adapted = adapt_kl(0.2, observed, target=0.05, horizon=1000, episodes=100)
    assert adapted == pytest.approx(0.2 * factor)


def test_the_controller_settles_where_the_kl_is_at_its_target() -> None:
    coef = 0.001
    for _ in range(2000):
        coef = adapt_kl(coef, observed=0.01 / coef, target=0.05, horizon=100, episodes=16)
    assert 0.01 / coef == pytest.approx(0.05, rel=1e-3)


def test_a_horizon_of_which_one_step_could_turn_the_coefficients_sign_is_refused() -> None:
    with pytest.raises(ValueError, match="above a fifth"):
        adapt_kl(0.2, 0.0, target=0.05, horizon=20, episodes=100)
    assert adapt_kl(0.2, 0.0, target=0.05, horizon=21, episodes=100) > 0
