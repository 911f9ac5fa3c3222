"""Log-probs and entropies of tokens: against the plain softmax, in chunks, and with a gradient if it is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rrg.model import logprobs
from rrg.model.logprobs import token_logprobs


def setting() -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, requires_grad=True)
    return hidden, nn.Linear(5, 11), torch.randint(0, 11, (7,))


def plain(hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    every = (head(hidden) / temperature).log_softmax(-1)
    return every.gather(-1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)


@pytest.mark.parametrize("at_once", [2**24, 22])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_the_plain_softmax_in_one_piece_or_in_chunks(
    monkeypatch: pytest.MonkeyPatch, at_once: int, temperature: float
) -> None:
    monkeypatch.setattr(logprobs, "_LOGITS_AT_ONCE", at_once)
    hidden, head, targets = setting()
    leaves = [hidden, *head.parameters()]
    got = token_logprobs(hidden, head, targets, temperature, entropy_gradient=True)
    expected = plain(hidden, head, targets, temperature)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
        ours_slopes = torch.autograd.grad(ours.sum(), leaves, retain_graph=True)
        theirs_slopes = torch.autograd.grad(theirs.sum(), leaves, retain_graph=True)
        for slope, wanted in zip(ours_slopes, theirs_slopes, strict=True):
            assert torch.allclose(slope, wanted, atol=1e-6)


@pytest.mark.parametrize("at_once", [2**24, 22])
def test_the_entropy_is_a_constant_unless_its_gradient_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(logprobs, "_LOGITS_AT_ONCE", at_once)
    hidden, head, targets = setting()
    values, entropy = token_logprobs(hidden, head, targets, 1.0)
    assert values.requires_grad
    assert not entropy.requires_grad
    with torch.no_grad():
        assert not token_logprobs(hidden, head, targets, 1.0, entropy_gradient=True)[1].requires_grad


def test_an_entropy_bonus_flattens_the_distribution() -> None:
    _, head, targets = setting()
    hidden = torch.randn(7, 5)
    before = token_logprobs(hidden, head, targets, 1.0, entropy_gradient=True)[1].mean()
    before.backward()
    with torch.no_grad():
        for parameter in head.parameters():
            assert parameter.grad is not None
            parameter += 0.1 * parameter.grad
    assert token_logprobs(hidden, head, targets, 1.0)[1].mean() > before
