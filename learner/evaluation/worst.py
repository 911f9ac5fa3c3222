"""Studies for people to look at (`learner.report.cases` draws them): what is told of each, and which to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from learner.evaluation.bootstrap import Array
from learner.evaluation.predictions import Prediction
from rrg.data.study import Study
from rrg.model.drawing import significant
from rrg.model.evidence import Evidence


@dataclass(frozen=True)
class Case:
    """One study of the sheet; `scores` are what is told of it, `evidence` what was seen in its regions, if known."""

    row: Prediction
    study: Study | None
    scores: Mapping[str, float]
    evidence: Evidence = ()


def cases_of(
    rows: Sequence[Prediction],
    studies: Sequence[Study] | None,
    per_study: Mapping[str, Array],
    evidence: Mapping[str, Evidence],
) -> list[Case]:
    """All studies, in their order."""
    return [
        Case(
            row,
            None if studies is None else studies[index],
            {name: float(values[index]) for name, values in per_study.items()},
            evidence.get(row.id, ()),
        )
        for index, row in enumerate(rows)
    ]


def telling_cases(cases: Sequence[Case], count: int) -> list[Case]:
    """`count` studies, those with the most significant regions first, then abnormal ones, else in their order."""
    return sorted(cases, key=lambda case: (-len(significant(case.evidence)), not _abnormal(case)))[:count]


def _abnormal(case: Case) -> bool:
    return case.study is not None and case.study.abnormal


def worst_cases(cases: Sequence[Case], by: str, count: int) -> list[Case]:
    """The `count` studies with the lowest `by`, lowest first; those without it are left out."""
    scored = [case for case in cases if math.isfinite(case.scores[by])]
    return sorted(scored, key=lambda case: case.scores[by])[:count]
