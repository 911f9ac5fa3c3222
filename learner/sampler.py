"""Which studies an RL step rolls out: a pure function of (seed, step), so a resumed run needs no cursor.

Contract: every stratum (abnormal, normal) is walked through in a fresh random order an epoch; a step never holds a
study twice (at the seam of two epochs the second draw is passed over); the abnormal share of the first n steps differs
from `abnormal_fraction` by less than one study.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rrg.data.study import Study
from rrg.errors import UserError

# Keeps the floor of 0.6 * 5 from becoming 2, and the ceiling of 0.1 * 30 from becoming 4.
_ROUNDING = 1e-9


def studies_for_step(
    studies: Sequence[Study], *, seed: int, step: int, count: int, abnormal_fraction: float
) -> tuple[str, ...]:
    """The ids of the `count` different studies of RL step `step` (from 0), abnormal ones first.

    A source that does not tell (or has only one kind) is sampled as one stratum.

    Raises UserError where a stratum holds fewer studies than one step needs of it.
    """
    abnormal = [study.id for study in studies if study.abnormal]
    normal = [study.id for study in studies if not study.abnormal]
    if not abnormal or not normal:
        return _walk(abnormal or normal, seed, 0, start=step * count, count=count)
    first = _share(step * count, abnormal_fraction)
    last = _share((step + 1) * count, abnormal_fraction)
    return _walk(abnormal, seed, 0, start=first, count=last - first) + _walk(
        normal, seed, 1, start=step * count - first, count=count - (last - first)
    )


def require_studies(studies: Sequence[Study], *, count: int, abnormal_fraction: float) -> None:
    """Raises UserError where some step of `studies_for_step` would find too few studies of a stratum."""
    abnormal = sum(bool(study.abnormal) for study in studies)
    normal = len(studies) - abnormal
    if not abnormal or not normal:
        return _require(count, abnormal or normal, 0)
    _require(math.ceil(count * abnormal_fraction - _ROUNDING), abnormal, 0)
    _require(count - _share(count, abnormal_fraction), normal, 1)


def _require(count: int, there: int, stratum: int) -> None:
    if count > there:
        kind = ("abnormal", "normal")[stratum]
        raise UserError(
            f"learner.rl.studies_per_step needs {count} {kind} studies a step, but the training split has {there}: "
            "lower learner.rl.studies_per_step, change learner.rl.abnormal_fraction or raise data.limit_train"
        )


def _share(total: int, fraction: float) -> int:
    return math.floor(total * fraction + _ROUNDING)


def _walk(ids: list[str], seed: int, stratum: int, *, start: int, count: int) -> tuple[str, ...]:
    """`count` different ids from position `start` of the endless sequence of shuffled epochs over `ids`."""
    _require(count, len(ids), stratum)
    epoch, offset = divmod(start, len(ids))
    chosen = _shuffled(ids, seed, stratum, epoch)[offset : offset + count]
    if len(chosen) < count:
        following = [name for name in _shuffled(ids, seed, stratum, epoch + 1) if name not in chosen]
        chosen += following[: count - len(chosen)]
    return tuple(chosen)


def _shuffled(ids: list[str], seed: int, stratum: int, epoch: int) -> list[str]:
    order = np.random.default_rng([seed, stratum, epoch]).permutation(len(ids))
    return [ids[i] for i in order]
