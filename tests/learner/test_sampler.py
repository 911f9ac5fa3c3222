"""Which studies an RL step takes."""

from __future__ import annotations

import pytest

from learner.sampler import require_studies, studies_for_step
from rrg.data.study import Report, Study
from rrg.errors import UserError

STUDIES = [
    Study(f"s{i}", "train", (), Report(), "test", findings=frozenset({"effusion"} if i % 3 == 0 else ()))
    for i in range(30)
]
ABNORMAL = {study.id for study in STUDIES if study.abnormal}


def chosen(step: int, seed: int = 0) -> tuple[str, ...]:
    return studies_for_step(STUDIES, seed=seed, step=step, count=5, abnormal_fraction=0.6)


def test_a_step_is_a_function_of_seed_and_number() -> None:
    assert [chosen(step) for step in range(8)] == [chosen(step) for step in range(8)]
    assert [chosen(step) for step in range(8)] != [chosen(step, seed=1) for step in range(8)]


def test_a_step_has_its_share_of_abnormal_studies_and_none_twice() -> None:
    for step in range(12):
        studies = chosen(step)
        assert len(set(studies)) == 5
        assert len(ABNORMAL & set(studies)) == 3


def test_an_epoch_visits_every_study_before_any_again() -> None:
    normal = [name for step in range(10) for name in chosen(step) if name not in ABNORMAL]
    assert len(set(normal)) == len(normal) == 20


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 0.85, 1.0])
@pytest.mark.parametrize("count", [5, 10, 12, 17, 21, 30])
def test_too_few_studies_for_any_step_are_told_of_before_the_first(count: int, fraction: float) -> None:
    try:
        for step in range(40):
            studies_for_step(STUDIES, seed=0, step=step, count=count, abnormal_fraction=fraction)
    except UserError:
        with pytest.raises(UserError, match="studies_per_step"):
            require_studies(STUDIES, count=count, abnormal_fraction=fraction)
    else:
        require_studies(STUDIES, count=count, abnormal_fraction=fraction)


def test_too_few_studies_are_named() -> None:
    with pytest.raises(UserError, match="studies_per_step"):
        studies_for_step(STUDIES, seed=0, step=0, count=25, abnormal_fraction=0.6)
