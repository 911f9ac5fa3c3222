"""Paired percentile bootstrap over studies, for means and for corpus-level measures alike.

Contract: a measure is a `Statistic`: one row of counts a study, and a function of the rows' sum. A resample of studies
is a vector of how often each was drawn, so all resamples of a measure are one matrix product. Two systems that were
run on the same studies are compared on the *same* resamples (paired), which removes the studies' own spread.
Efron & Tibshirani 1993, chapter 13 (percentile intervals); Koehn 2004 (paired, for corpus BLEU). `permutation_p` is
the paired test beside them: approximate randomisation (Noreen 1989; Riezler & Maxwell 2005), which for a mean over
studies is the sign-flip test of its differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval. All three NaN where the value is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Statistic:
    """A measure of a corpus: `of_sums` of the column sums of `columns` [studies, counts].

    `of_sums` maps [..., counts] -> [...]; NaN means that it is undefined there (for example the mean over the
    abnormal studies of a resample without any).
    """

    columns: Array
    of_sums: Callable[[Array], Array]

    @property
    def value(self) -> float:
        """The measure of the corpus itself."""
        return float(self.of_sums(self.columns.sum(axis=0)))

    def draws(self, resamples: Array) -> Array:
        """The measure of every resample, [draws, studies] -> [draws]."""
        return self.of_sums(resamples @ self.columns)


def mean(values: npt.ArrayLike, of: npt.ArrayLike | None = None) -> Statistic:
    """The mean of one value a study; with the mask `of`, over those studies only (NaN where none is drawn)."""
    value = np.asarray(values, dtype=np.float64)
    mask = np.ones_like(value) if of is None else np.asarray(of, dtype=np.float64)
    return Statistic(np.stack([value * mask, mask], axis=1), _quotient)


def draw_resamples(studies: int, draws: int, seed: int) -> Array:
    """How often each study is drawn in each resample, [draws, studies]; every row sums to `studies`.

    The same arguments give the same resamples: pass one matrix to every comparison of a run.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(studies, np.full(studies, 1.0 / studies), size=draws).astype(np.float64)


def interval(statistic: Statistic, resamples: Array) -> Interval:
    """The measure with its 95 % percentile interval."""
    return _percentiles(statistic.value, statistic.draws(resamples))


def difference(first: Statistic, second: Statistic, resamples: Array) -> Interval:
    """`first` minus `second`, paired by study, with its 95 % percentile interval.

    Raises ValueError where the two do not have the same number of studies.
    """
    if len(first.columns) != len(second.columns):
        raise ValueError(f"paired comparison of {len(first.columns)} and {len(second.columns)} studies")
    return _percentiles(first.value - second.value, first.draws(resamples) - second.draws(resamples))


def draw_swaps(studies: int, draws: int, seed: int) -> Array:
    """Which studies' results are exchanged between two systems in each permutation, 0 or 1, [draws, studies]."""
    return np.random.default_rng(seed).integers(0, 2, size=(draws, studies)).astype(np.float64)


def permutation_p(first: Statistic, second: Statistic, swaps: Array) -> float:
    """Two-sided p of "it makes no difference which system a study's result is of", never below 1 / (draws + 1).

    NaN where the difference is undefined. Raises ValueError where the two do not have the same number of studies.
    """
    if len(first.columns) != len(second.columns):
        raise ValueError(f"paired comparison of {len(first.columns)} and {len(second.columns)} studies")
    seen = first.value - second.value
    if not np.isfinite(seen):
        return float("nan")
    moved = swaps @ (second.columns - first.columns)
    drawn = first.of_sums(first.columns.sum(axis=0) + moved) - second.of_sums(second.columns.sum(axis=0) - moved)
    # Equal up to rounding is equal: without this a difference would not count as as large as itself.
    extreme = np.abs(drawn[np.isfinite(drawn)]) >= abs(seen) - 1e-12
    return float((1 + extreme.sum()) / (1 + len(extreme)))


def _percentiles(value: float, draws: Array) -> Interval:
    defined = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(defined):
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _quotient(sums: Array) -> Array:
    part, whole = sums[..., 0], sums[..., 1]
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
