"""Advantages of whole reports: what each kind compares with, and what failed or flat groups do."""

from __future__ import annotations

import numpy as np
import pytest

from learner.objectives.advantages import flat_groups, sequence_advantages

REWARDS = [1.0, 3.0, 2.0, -4.0, 8.0, 5.0]
GROUPS = ["a", "a", "a", "b", "b", "c"]
VALID = [True] * 6


def test_grpo_divides_the_distance_from_the_study_s_mean_by_its_spread() -> None:
    out = sequence_advantages("grpo", REWARDS, GROUPS, VALID)
    a = (np.array([1.0, 3.0, 2.0]) - 2.0) / np.std([1.0, 3.0, 2.0])
    assert out.values == pytest.approx([*a, -1.0, 1.0, 0.0])


def test_dr_grpo_keeps_the_distance_itself() -> None:
    assert sequence_advantages("dr_grpo", REWARDS, GROUPS, VALID).values.tolist() == [-1, 1, 0, -6, 6, 0]


def test_rloo_compares_with_the_mean_of_the_others() -> None:
    out = sequence_advantages("rloo", REWARDS, GROUPS, VALID)
    assert out.values == pytest.approx([1 - 2.5, 3 - 1.5, 2 - 2, -4 - 8, 8 + 4, 0])


def test_reinforce_pp_with_baseline_is_whitened_over_the_batch() -> None:
    out = sequence_advantages("reinforce_pp_baseline", REWARDS, GROUPS, VALID)
    centred = np.array([-1.0, 1.0, 0.0, -6.0, 6.0, 0.0])
    assert out.values == pytest.approx(centred / centred.std())
    assert out.values.std() == pytest.approx(1.0)


def test_scst_compares_with_the_greedy_report_of_the_study() -> None:
    out = sequence_advantages("scst", REWARDS, GROUPS, VALID, {"a": 2.5, "b": 0.0, "c": 4.0})
    assert out.values.tolist() == [-1.5, 0.5, -0.5, -4.0, 8.0, 1.0]
    assert out.flat_groups == 0


def test_a_study_whose_greedy_report_failed_teaches_nothing_in_scst() -> None:
    out = sequence_advantages("scst", REWARDS, GROUPS, VALID, {"a": 2.5, "c": 4.0})
    assert out.values.tolist() == [-1.5, 0.5, -0.5, 0.0, 0.0, 1.0]
    assert out.flat.tolist() == [False, False, False, True, True, False]
    assert (out.groups, out.flat_groups) == (3, 1)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"])
def test_a_flat_group_teaches_nothing(kind: str) -> None:
    # 0.1 three times has a standard deviation of 1e-17: that is no spread.
    out = sequence_advantages(kind, [1.0, 3.0, 0.1, 0.1, 0.1], ["a", "a", "b", "b", "b"], [True] * 5)
    assert out.values[2:].tolist() == [0.0] * 3
    assert out.flat.tolist() == [False, False, True, True, True]
    assert (out.groups, out.flat_groups) == (2, 1)
    assert flat_groups([1.0, 3.0, 0.1, 0.1, 0.1], ["a", "a", "b", "b", "b"], [True] * 5) == (2, 1)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"])
def test_a_failed_sample_is_left_out_and_never_counts_as_zero(kind: str) -> None:
    out = sequence_advantages(kind, [1.0, 3.0, float("nan"), 7.0], ["a", "a", "a", "b"], [True, True, False, False])
    alone = sequence_advantages(kind, [1.0, 3.0], ["a", "a"], [True, True])
    assert out.values.tolist() == [*alone.values.tolist(), 0.0, 0.0]
    assert (out.groups, out.flat_groups) == (2, 1)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline", "scst"])
def test_the_order_of_the_samples_and_a_constant_a_study_do_not_matter(kind: str) -> None:
    rng = np.random.default_rng(0)
    rewards, groups = rng.normal(size=24), np.array([f"s{i % 6}" for i in range(24)])
    baselines = {f"s{i}": float(i) for i in range(6)}
    first = sequence_advantages(kind, rewards.tolist(), groups.tolist(), [True] * 24, baselines).values
    order = rng.permutation(24)
    shuffled = sequence_advantages(kind, rewards[order].tolist(), groups[order].tolist(), [True] * 24, baselines)
    assert shuffled.values == pytest.approx(first[order], abs=1e-6)
    # What a constant report gets for the study: reward.relative_to_constant would change nothing.
    shifted = rewards + np.array([10.0 * int(group[1:]) for group in groups])
    higher = {group: value + 10.0 * int(group[1:]) for group, value in baselines.items()}
    again = sequence_advantages(kind, shifted.tolist(), groups.tolist(), [True] * 24, higher).values
    assert again == pytest.approx(first, abs=1e-5)


def test_rewards_that_are_not_numbers_and_kinds_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        sequence_advantages("grpo", [1.0, float("inf")], ["a", "a"], [True, True])
    with pytest.raises(ValueError, match="2 rewards, 1 groups"):
        sequence_advantages("grpo", [1.0, 2.0], ["a"], [True, True])
    with pytest.raises(ValueError, match="no advantage 'ppo' of whole reports"):
        sequence_advantages("ppo", [1.0], ["a"], [True])
