"""All studies of a data set, and what was wrong with the records that are not among them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, get_args

from rrg.data.study import Split, Study
from rrg.errors import UserError

SPLITS: Final[tuple[Split, ...]] = get_args(Split)
NO_FIELD: Final = "-"


@dataclass(frozen=True)
class Problem:
    """One bad record: the file, the field in it (`NO_FIELD`: the record is none), and what is wrong; the image file
    that is missing, if that is it."""

    file: str
    field: str
    reason: str
    missing_file: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}" if self.field == NO_FIELD else f"{self.file}: {self.field}: {self.reason}"


@dataclass
class ProblemLog:
    """Collects problems; with `strict` the first one is raised as a `UserError` instead.

    `skipped` counts, by reason, records that are in order and not wanted.
    """

    strict: bool = False
    problems: list[Problem] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, file: str, field_name: str, reason: str, missing_file: str | None = None) -> None:
        problem = Problem(file, field_name, reason, missing_file)
        if self.strict:
            raise UserError(f"{problem} (data.strict=false skips bad records and counts them)")
        self.problems.append(problem)

    def skip(self, reason: str) -> None:
        self.skipped[reason] += 1


class StudySet:
    """Studies by id, in a fixed order, with their splits; `problems` and `skipped` say what is not among them.

    `fingerprint` is a hash of every id, split and target text and of the settings that decide the pixels: equal
    fingerprints mean equal texts and settings (a picture that changed under the same id is not seen).
    """

    def __init__(
        self,
        studies: Sequence[Study],
        problems: Sequence[Problem],
        settings: Mapping[str, object],
        skipped: Mapping[str, int] | None = None,
    ) -> None:
        self.studies: dict[str, Study] = {study.id: study for study in studies}
        if len(self.studies) != len(studies):
            raise ValueError("two studies have the same id")
        self.problems: list[Problem] = list(problems)
        self.skipped: dict[str, int] = dict(skipped or {})
        digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
        for study in studies:
            digest.update("\0".join((study.id, study.split, study.target)).encode())
        self.fingerprint: str = digest.hexdigest()[:16]

    def split(self, name: Split) -> list[Study]:
        """The studies of a split, always in the same order."""
        return [study for study in self.studies.values() if study.split == name]

    def __getitem__(self, study_id: str) -> Study:
        return self.studies[study_id]

    def __iter__(self) -> Iterator[Study]:
        return iter(self.studies.values())

    def __len__(self) -> int:
        return len(self.studies)
