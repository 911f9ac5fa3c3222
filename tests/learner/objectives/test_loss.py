"""The loss put together: against plain loops and numerical gradients, and whatever the split into micro-batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from configs.schema import CorrectionConfig, KLConfig, RLConfig, ValueConfig
from learner.objectives.loss import TokenBatch, policy_loss, summarise
from rrg.model.value import ValueHead
from tests.learner.objectives.batches import MAX_TOKENS, batch, denominators, rows_of

PLAIN = RLConfig(kl=KLConfig(place="off"), correction=CorrectionConfig(mode="off"))
FULL = RLConfig(
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=1.5,
    kl=KLConfig(estimator="k3"),
    correction=CorrectionConfig(cap=1.5),
    entropy_coef=0.01,
)


def loss_of(of: TokenBatch, settings: RLConfig, kl_coef: float = 0.05) -> float:
    return float(policy_loss(of, settings, kl_coef, denominators(of)).loss)


def looped(of: TokenBatch, token_loss: Callable[[int, int], float], reduction: str) -> float:
    """The loss by plain loops, of a function of row and token."""
    total, tokens = 0.0, int(of.mask.sum())
    for row in range(len(of.mask)):
        length = int(of.mask[row].sum())
        share = {"tokens": tokens, "sequences": length * len(of.mask), "constant": len(of.mask) * MAX_TOKENS}[reduction]
        total += sum(token_loss(row, t) for t in range(length)) / share
    return total


def clipped(ratio: float, advantage: float, settings: RLConfig) -> float:
    within = min(max(ratio, 1 - settings.clip_low), 1 + settings.clip_high)
    objective = min(ratio * advantage, within * advantage)
    return max(objective, settings.dual_clip * advantage) if settings.dual_clip and advantage < 0 else objective


@pytest.mark.parametrize("reduction", ["tokens", "sequences", "constant"])
def test_the_clipped_loss_with_all_its_parts_equals_a_plain_loop(reduction: str) -> None:
    b, settings = batch(), replace(FULL, reduction=reduction)

    def token_loss(row: int, t: int) -> float:
        current, proximal = float(b.current[row, t]), float(b.proximal[row, t])
        weight = min(math.exp(proximal - float(b.behaviour[row, t])), 1.5)
        ratio, d = math.exp(current - proximal), current - float(b.reference[row, t])
        penalty = ratio * (math.exp(-d) - 1 + d)
        surrogate = clipped(ratio, float(b.advantages[row, t]), settings)
        return -weight * surrogate + 0.05 * penalty - 0.01 * float(b.entropy[row, t])

    assert loss_of(b, settings) == pytest.approx(looped(b, token_loss, reduction), abs=1e-9)


@pytest.mark.parametrize("reduction", ["tokens", "sequences", "constant"])
def test_gspo_gives_all_tokens_of_a_report_the_mean_of_their_log_ratios(reduction: str) -> None:
    b, settings = batch(), replace(PLAIN, surrogate="gspo", reduction=reduction, clip_low=0.05, clip_high=0.06)

    def token_loss(row: int, t: int) -> float:
        length = int(b.mask[row].sum())
        ratio = math.exp(sum(float(b.current[row, k] - b.proximal[row, k]) for k in range(length)) / length)
        return -clipped(ratio, float(b.advantages[row, t]), settings)

    assert loss_of(b, settings) == pytest.approx(looped(b, token_loss, reduction), abs=1e-9)


def test_cispo_and_reinforce_weigh_the_log_probability_itself() -> None:
    b = batch()

    def cispo(row: int, t: int) -> float:
        ratio = math.exp(float(b.current[row, t] - b.proximal[row, t]))
        return -min(max(ratio, 0.8), 1.28) * float(b.advantages[row, t] * b.current[row, t])

    def reinforce(row: int, t: int) -> float:
        return -float(b.advantages[row, t] * b.current[row, t])

    for name, plain in (("cispo", cispo), ("reinforce", reinforce)):
        settings = replace(PLAIN, surrogate=name)
        assert loss_of(b, settings) == pytest.approx(looped(b, plain, "tokens"), abs=1e-9)


def test_the_value_loss_is_the_worse_of_the_clipped_and_the_free_one() -> None:
    b = batch(values=True)
    assert b.values is not None
    assert b.old_values is not None
    assert b.returns is not None
    settings = replace(PLAIN, value=ValueConfig(coef=0.7, clip=0.3))

    def token_loss(row: int, t: int) -> float:
        value, old, target = (float(part[row, t]) for part in (b.values, b.old_values, b.returns))
        near = old + min(max(value - old, -0.3), 0.3)
        ratio = math.exp(float(b.current[row, t] - b.proximal[row, t]))
        fit = 0.5 * max((value - target) ** 2, (near - target) ** 2)
        return -clipped(ratio, float(b.advantages[row, t]), settings) + 0.7 * fit

    assert loss_of(b, settings) == pytest.approx(looped(b, token_loss, "tokens"), abs=1e-9)


CORRECTIONS = {
    ("truncate", "token"): lambda ratios, t: min(ratios[t], 1.2),
    ("mask", "token"): lambda ratios, t: ratios[t] if ratios[t] <= 1.2 else 0.0,
    ("truncate", "sequence"): lambda ratios, _: min(math.prod(ratios), 1.2),
    ("mask", "sequence"): lambda ratios, _: math.prod(ratios) if math.prod(ratios) <= 1.2 else 0.0,
    ("off", "token"): lambda ratios, t: 1.0,
}


@pytest.mark.parametrize(("mode", "level"), list(CORRECTIONS))
def test_the_correction_weighs_the_surrogate_by_what_engine_and_learner_differ_in(mode: str, level: str) -> None:
    b = batch()
    settings = replace(PLAIN, surrogate="reinforce", correction=CorrectionConfig(mode=mode, level=level, cap=1.2))

    def token_loss(row: int, t: int) -> float:
        length = int(b.mask[row].sum())
        ratios = [math.exp(float(b.proximal[row, k] - b.behaviour[row, k])) for k in range(length)]
        return -CORRECTIONS[mode, level](ratios, t) * float(b.advantages[row, t] * b.current[row, t])

    assert loss_of(b, settings) == pytest.approx(looped(b, token_loss, "tokens"), abs=1e-9)


def objectives() -> list[RLConfig]:
    """Every surrogate with every reduction, and the KL and the correction in each of their forms with them by turns."""
    kinds = itertools.cycle(itertools.product(["k2", "k3"], ["token", "sequence"], ["truncate", "mask"]))
    return [
        replace(
            FULL,
            surrogate=surrogate,
            reduction=reduction,
            dual_clip=None if dual == 0 else dual,
            kl=KLConfig(estimator=estimator),
            correction=CorrectionConfig(mode=mode, level=level, cap=1.5),
        )
        for (surrogate, reduction, dual), (estimator, level, mode) in zip(
            itertools.product(
                ["ppo_clip", "gspo", "cispo", "reinforce"], ["tokens", "sequences", "constant"], [0, 1.5]
            ),
            kinds,
            strict=False,
        )
    ]


def named(settings: RLConfig) -> str:
    return f"{settings.surrogate}-{settings.reduction}-{settings.kl.estimator}-{settings.correction.level}"


@pytest.mark.parametrize("settings", objectives(), ids=named)
def test_the_split_into_micro_batches_changes_neither_loss_nor_gradient_nor_metrics(settings: RLConfig) -> None:
    whole = batch(rows=8, values=True)
    count = denominators(whole)

    def gradients_and_metrics(parts: list[list[int]]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        names = ("current", "entropy", "values")
        leaves = {name: vars(whole)[name].clone().requires_grad_() for name in names}
        shares = [policy_loss(rows_of(replace(whole, **leaves), rows), settings, 0.05, count) for rows in parts]
        for share in shares:
            share.loss.backward()
        sums = {name: sum(float(share.sums[name]) for share in shares) for name in shares[0].sums}
        maxima = {name: max(float(share.maxima[name]) for share in shares) for name in shares[0].maxima}
        gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        return gradients, summarise(sums, maxima) | {"total": sum(float(share.loss) for share in shares)}

    one, told = gradients_and_metrics([list(range(8))])
    many, told_again = gradients_and_metrics([[0, 5], [1, 2, 3], [4], [6, 7]])
    assert told_again == pytest.approx(told, abs=1e-9)
    assert told["loss"] == pytest.approx(told["total"], abs=1e-9)
    assert set(one) == {"current", "entropy", "values"}
    for name, gradient in one.items():
        assert torch.allclose(many[name], gradient, atol=1e-12)


# The weight of cispo is a constant for the gradient: it has a test of its own.
@pytest.mark.parametrize("settings", [s for s in objectives() if s.surrogate != "cispo"], ids=named)
def test_the_gradient_equals_the_numerical_one(settings: RLConfig) -> None:
    b = batch(rows=3, tokens=4, values=True)

    def loss(current: torch.Tensor, entropy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        moved = replace(b, current=current, entropy=entropy, values=values)
        return policy_loss(moved, settings, 0.05, denominators(b)).loss

    leaves = [part.clone().requires_grad_() for part in (b.current, b.entropy, b.values) if part is not None]
    assert torch.autograd.gradcheck(loss, leaves)


def test_the_gradient_of_cispo_is_the_clipped_ratio_times_the_advantage() -> None:
    b = batch()
    current = b.current.clone().requires_grad_()
    settings = replace(PLAIN, surrogate="cispo", clip_low=1.0)
    policy_loss(replace(b, current=current), settings, 0.0, denominators(b)).loss.backward()
    weight = torch.exp(b.current - b.proximal).clamp(0.0, 1.28)
    assert current.grad is not None
    assert torch.allclose(current.grad, torch.where(b.mask, -weight * b.advantages / b.mask.sum(), 0.0))


def test_without_movement_all_surrogates_have_the_gradient_of_reinforce() -> None:
    b = batch()
    gradients = []
    for name in ("reinforce", "ppo_clip", "cispo", "gspo"):
        current = b.proximal.clone().requires_grad_()
        settings = replace(PLAIN, surrogate=name, reduction="sequences")
        policy_loss(replace(b, current=current), settings, 0.0, denominators(b)).loss.backward()
        assert current.grad is not None
        gradients.append(current.grad)
    for other in gradients[1:]:
        assert torch.allclose(other, gradients[0], atol=1e-12)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), -1e4])
def test_masked_tokens_have_no_influence_on_loss_or_gradient(spoilt: float) -> None:
    b = batch(values=True)

    def gradient(of: TokenBatch) -> tuple[float, torch.Tensor]:
        current = of.current.clone().requires_grad_()
        loss = policy_loss(replace(of, current=current), replace(FULL, entropy_coef=0.0), 0.05, denominators(b)).loss
        loss.backward()
        assert current.grad is not None
        return float(loss.detach()), current.grad

    parts = {k: v if v.dtype == torch.bool else torch.where(b.mask, v, spoilt) for k, v in vars(b).items()}
    loss, slope = gradient(TokenBatch(**parts))
    expected_loss, expected_slope = gradient(b)
    assert loss == expected_loss
    assert torch.equal(slope, expected_slope)


def test_a_micro_batch_that_only_keeps_step_adds_nothing() -> None:
    b = batch()
    idle = replace(b, mask=torch.zeros_like(b.mask), current=b.current.clone().requires_grad_())
    part = policy_loss(idle, replace(FULL, entropy_coef=0.0, reduction="sequences"), 0.05, denominators(b))
    part.loss.backward()
    assert float(part.loss.detach()) == 0.0
    assert idle.current.grad is not None
    assert not idle.current.grad.any()
    assert not any(float(total) for total in part.sums.values())


def test_a_clipped_token_has_no_gradient_of_the_surrogate() -> None:
    b = batch()
    far = (b.proximal + 1.0).requires_grad_()
    policy_loss(replace(b, current=far), PLAIN, 0.0, denominators(b)).loss.backward()
    gains = b.mask & (b.advantages > 0)
    assert far.grad is not None
    assert gains.any()
    assert (far.grad[gains] == 0).all()
    assert (far.grad[b.mask & (b.advantages < 0)] != 0).all()


def test_dual_clip_takes_the_gradient_of_bad_tokens_that_became_much_likelier() -> None:
    b = batch()
    far = (b.proximal + 2.0).requires_grad_()
    part = policy_loss(replace(b, current=far), replace(PLAIN, dual_clip=3.0), 0.0, denominators(b))
    part.loss.backward()
    assert far.grad is not None
    assert not far.grad.any()
    assert float(part.sums["clip_dual"]) == int((b.mask & (b.advantages < 0)).sum())


def test_the_kl_is_in_the_loss_only_where_the_config_puts_it() -> None:
    b = batch()
    for place in ("reward", "off"):
        settings = replace(PLAIN, kl=KLConfig(place=place, estimator="k1"))
        assert loss_of(b, settings, kl_coef=0.5) == loss_of(b, PLAIN, kl_coef=0.0)


def test_the_metrics_are_those_of_a_plain_loop() -> None:
    b, settings = batch(values=True), replace(FULL, correction=CorrectionConfig(mode="mask", cap=1.2))
    part = policy_loss(b, settings, 0.05, denominators(b))
    told = summarise({k: float(v) for k, v in part.sums.items()}, {k: float(v) for k, v in part.maxima.items()})
    where = b.mask
    raw = torch.exp(b.proximal - b.behaviour)[where]
    weight = torch.where(raw > 1.2, 0.0, raw)
    ratio, advantages = torch.exp(b.current - b.proximal)[where], b.advantages[where]
    d = (b.current - b.reference)[where]
    assert b.returns is not None
    assert b.values is not None
    assert b.fresh is not None
    expected = {
        "tokens": float(where.sum()),
        "kl_k1": d.mean(),
        "kl_k2": (d.square() / 2).mean(),
        "kl_k3": (torch.exp(-d) - 1 + d).mean(),
        "entropy": b.entropy[where].mean(),
        "clip_low": ((ratio < 0.8) & (advantages < 0)).double().mean(),
        "clip_high": ((ratio > 1.28) & (advantages > 0)).double().mean(),
        "clip_dual": ((ratio > 1.5) & (advantages < 0)).double().mean(),
        "ratio_max": ratio.max(),
        "importance_mean": raw.mean(),
        "importance_max": raw.max(),
        "importance_truncated": 0.0,
        "importance_masked": (raw > 1.2).double().mean(),
        "ess": weight.sum() ** 2 / (len(weight) * weight.square().sum()),
        "logprob_gap_mean": (b.proximal - b.behaviour)[where].abs().mean(),
        "logprob_gap_max": (b.proximal - b.behaviour)[where].abs().max(),
        "logprob_gap_fresh_mean": (b.proximal - b.behaviour)[where & b.fresh].abs().mean(),
        "explained_variance": 1 - (b.returns - b.values)[where].var() / b.returns[where].var(),
        "loss": part.loss,
    }
    assert {name: told[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=1e-9
    )
    assert set(told) - set(expected) == {"surrogate", "value_loss"}


def test_the_gap_of_fresh_tokens_leaves_out_those_of_older_weights() -> None:
    b = batch()
    fresh = torch.arange(b.mask.shape[1]) >= 2

    def told(fresh: torch.Tensor) -> dict[str, float]:
        part = policy_loss(replace(b, fresh=fresh.expand(b.mask.shape)), PLAIN, 0.0, denominators(b))
        return summarise({k: float(v) for k, v in part.sums.items()}, {k: float(v) for k, v in part.maxima.items()})

    gap = (b.proximal - b.behaviour).abs()
    assert told(fresh)["logprob_gap_fresh_mean"] == pytest.approx(float(gap[b.mask & fresh].mean()))
    assert told(fresh)["logprob_gap_mean"] == pytest.approx(float(gap[b.mask].mean()))
    assert "logprob_gap_fresh_mean" not in told(torch.zeros_like(fresh))


def test_the_critic_takes_next_to_nothing_of_the_norm_that_clips_the_policy() -> None:
    b = batch(rows=64, values=True)
    assert b.returns is not None
    head, states = ValueHead(64, seed=0), torch.randn(*b.mask.shape, 64, generator=torch.Generator().manual_seed(5))
    values = head(states.flatten(0, 1)).reshape(b.mask.shape).double()
    wrong = replace(b, values=values, old_values=values.detach(), returns=b.returns - 2.0)
    policy_loss(wrong, RLConfig(), 0.0, denominators(b)).loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in head.parameters() if p.grad is not None])
    assert 0 < float(norm) < 0.1  # against a grad_clip of 1


def test_the_critic_learns_the_same_whatever_the_coefficient_of_its_loss() -> None:
    b = batch(values=True)
    states = torch.randn(*b.mask.shape, 16, generator=torch.Generator().manual_seed(5)).flatten(0, 1)
    learnt = []
    for coef in (ValueConfig().coef, 0.5):
        head = ValueHead(16, seed=0)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.0)
        for _ in range(20):
            values = head(states).reshape(b.mask.shape).double()
            settings = replace(PLAIN, value=ValueConfig(coef=coef))
            part = policy_loss(replace(b, values=values, old_values=values.detach()), settings, 0.0, denominators(b))
            optimizer.zero_grad()
            part.loss.backward()
            optimizer.step()
        learnt.append(head(states).detach())
    assert learnt[1].abs().max() > 0.01
    assert torch.allclose(learnt[0], learnt[1], atol=1e-3)


def test_an_entropy_bonus_without_a_gradient_is_refused_rather_than_ignored() -> None:
    b = batch()
    moving = replace(b, current=b.current.clone().requires_grad_())
    with pytest.raises(ValueError, match="carries no gradient"):
        policy_loss(moving, FULL, 0.0, denominators(b))
    with pytest.raises(ValueError, match="without old_values"):
        policy_loss(replace(b, values=b.current), PLAIN, 0.0, denominators(b))


@pytest.mark.parametrize(
    "settings",
    [
        replace(PLAIN, surrogate="a2c"),
        replace(PLAIN, reduction="mean"),
        replace(PLAIN, correction=CorrectionConfig(mode="clip")),
        replace(PLAIN, correction=CorrectionConfig(level="batch")),
        replace(PLAIN, kl=KLConfig(estimator="k1")),
    ],
)
def test_a_part_that_does_not_exist_is_named(settings: RLConfig) -> None:
    with pytest.raises(ValueError, match=r"a2c|mean|clip|batch|k1"):
        policy_loss(batch(), settings, 0.0, denominators(batch()))
