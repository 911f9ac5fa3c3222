"""Intervals cover what they should, and pairing uses what two systems have in common."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from learner.evaluation import metrics
from learner.evaluation.bootstrap import (
    Statistic,
    difference,
    draw_resamples,
    draw_swaps,
    interval,
    mean,
    permutation_p,
)


def test_the_interval_of_a_mean_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    resamples = draw_resamples(80, 500, seed=1)
    covered = 0
    for _ in range(400):
        _, low, high = interval(mean(rng.exponential(size=80)), resamples)
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 400 <= 0.98


def test_the_interval_of_a_micro_f1_difference_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    resamples = draw_resamples(100, 400, seed=1)

    def counts(studies: int, recall: float) -> Statistic:
        truth = rng.poisson(1.5, studies)
        hits = rng.binomial(truth, recall)
        return Statistic(np.stack([hits, hits + rng.poisson(0.5, studies), truth], axis=1) * 1.0, metrics.finding_f1)

    true_gap = counts(200_000, 0.7).value - counts(200_000, 0.5).value
    covered = 0
    for _ in range(200):
        _, low, high = difference(counts(100, 0.7), counts(100, 0.5), resamples)
        covered += low <= true_gap <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_resampling_sums_equals_resampling_studies_one_by_one() -> None:
    rng = np.random.default_rng(3)
    columns = rng.integers(0, 5, size=(12, 3)).astype(float) + 1
    statistic = Statistic(columns, metrics.finding_f1)
    resamples = draw_resamples(12, 20, seed=0)
    expected = []
    for counts in resamples.astype(int):
        drawn = np.repeat(np.arange(12), counts)
        assert len(drawn) == 12
        hits, stated, true = columns[drawn].sum(axis=0)
        expected.append(2 * hits / (stated + true))
    assert statistic.draws(resamples) == pytest.approx(expected)


def test_pairing_removes_the_spread_between_studies() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(scale=10.0, size=200)
    better = base + 0.1 + rng.normal(scale=0.05, size=200)
    gain = difference(mean(better), mean(base), draw_resamples(200, 1000, seed=0))
    assert gain.low > 0
    assert gain.high - gain.low < 0.03


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    statistic = mean(np.arange(30.0))
    first, again, other = (interval(statistic, draw_resamples(30, 200, seed)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_masked_mean_without_any_study_is_undefined_and_not_zero() -> None:
    assert np.isnan(interval(mean([1.0, 2.0], of=[False, False]), draw_resamples(2, 10, seed=0))).all()


def test_resamples_without_a_masked_study_are_left_out() -> None:
    value, low, high = interval(mean([5.0, 1.0, 1.0], of=[True, False, False]), draw_resamples(3, 200, seed=0))
    assert (value, low, high) == (5.0, 5.0, 5.0)


def test_a_comparison_of_different_numbers_of_studies_is_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 studies"):
        difference(mean([1.0, 2.0, 3.0]), mean([1.0, 2.0]), draw_resamples(3, 10, seed=0))


def test_the_permutation_p_of_a_mean_is_that_of_all_sign_flips() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.4, 1, 10), rng.normal(0, 1, 10)
    signs = np.array(list(product([1, -1], repeat=10)))
    exact = np.mean(np.abs(signs @ (first - second)) >= abs((first - second).sum()) - 1e-12)
    found = permutation_p(mean(first), mean(second), draw_swaps(10, 20_000, seed=0))
    assert found == pytest.approx(exact, abs=0.01)


def test_the_permutation_test_rarely_rejects_equal_systems_and_always_a_clear_difference() -> None:
    rng = np.random.default_rng(0)
    swaps = draw_swaps(40, 500, seed=0)
    rejected = 0
    for _ in range(300):
        truth = rng.poisson(2, (40, 1))
        counts = [np.hstack([rng.binomial(truth, 0.5), truth, truth]) * 1.0 for _ in range(2)]
        rejected += permutation_p(*(Statistic(c, metrics.finding_f1) for c in counts), swaps) < 0.05
    assert rejected / 300 < 0.09
    better = mean(np.arange(40) + 5.0)
    assert permutation_p(better, mean(np.arange(40.0)), swaps) == pytest.approx(1 / 501)
    assert permutation_p(better, better, swaps) == 1.0
