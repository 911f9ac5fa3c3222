"""Is a data set usable? Counts and everything that is wrong, in one pass over its studies, one study at a time.

Contract: what a reader left out (`ProblemLog`) and what is found here are both in the report; nothing is repaired.
Studies without findings and records that were skipped on purpose are counted, and wrong by themselves they are not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rrg.data.imagecache import batches
from rrg.data.images import image_size, load_image
from rrg.data.study import Image, Study
from rrg.data.studyset import NO_FIELD, SPLITS, Problem, ProblemLog
from rrg.errors import UserError

# Lower ends of the bins of the length histogram, words.
WORD_BINS: Final = (0, 1, 10, 20, 40, 80, 160, 320)
_BATCH: Final = 64
_SIZE: Final = 224


@dataclass(frozen=True)
class SplitCount:
    """Studies of one split, and their images by view."""

    studies: int
    images: Mapping[str, int]


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds and what is wrong with it.

    `problems`: bad records, as the reader names them. `missing_files`, `corrupt_files`: images, by path or by the name
    in the record (`decoded`: whether every image was decoded, or only its header read). `duplicate_ids`: how often.
    `words`: studies by length of the findings section, from that many words on (`WORD_BINS`).
    """

    splits: Mapping[str, SplitCount]
    patients: int
    decoded: bool
    problems: tuple[Problem, ...]
    missing_files: Mapping[str, str]
    corrupt_files: Mapping[str, str]
    duplicate_ids: Mapping[str, int]
    patients_in_two_splits: Mapping[str, tuple[str, ...]]
    empty_reports: tuple[str, ...]
    words: Mapping[int, int]
    skipped: Mapping[str, int]

    @property
    def studies(self) -> int:
        return sum(count.studies for count in self.splits.values())

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and there is a study at all."""
        wrong = (
            self.problems, self.missing_files, self.corrupt_files, self.duplicate_ids, self.patients_in_two_splits
        )  # fmt: skip
        return self.studies > 0 and not any(wrong)

    def to_json(self) -> dict[str, Any]:
        """All of it, for `json.dumps`."""
        words = {str(least): count for least, count in self.words.items()}
        return {"ok": self.ok, "studies": self.studies, **asdict(self), "words": words}


@dataclass
class _Tally:
    """What one pass collects."""

    studies: Counter[str] = field(default_factory=Counter)
    views: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    ids: Counter[str] = field(default_factory=Counter)
    patients: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    empty: list[str] = field(default_factory=list)
    words: Counter[int] = field(default_factory=Counter)
    missing: dict[str, str] = field(default_factory=dict)
    corrupt: dict[str, str] = field(default_factory=dict)

    def add(self, study: Study, bad: Mapping[Path, str]) -> None:
        self.studies[study.split] += 1
        self.ids[study.id] += 1
        self.views[study.split].update(image.view for image in study.images)
        if study.patient is not None:
            self.patients[study.patient].add(study.split)
        count = len(study.target.split())
        self.words[max(least for least in WORD_BINS if least <= count)] += 1
        if not count:
            self.empty.append(study.id)
        for image in study.images:
            if image.path in bad:
                found = self.corrupt if image.path.exists() else self.missing
                found[str(image.path)] = bad[image.path]


def check_studies(studies: Iterable[Study], log: ProblemLog, decode: bool = True, workers: int = 1) -> CheckReport:
    """The report on `studies`, whose reader writes to `log`; images are read by `workers` threads.

    A `UserError` of the reader (a file that can't be read, or the first bad record where the log is strict) ends the
    reading and is the last of the problems.
    """
    tally = _Tally()
    stopped: list[Problem] = []
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for batch in batches(_until_error(studies, stopped), _BATCH):
            paths = list(dict.fromkeys(image.path for study in batch for image in study.images))
            reasons = pool.map(_looks_wrong, paths, [decode] * len(paths))
            bad = {path: reason for path, reason in zip(paths, reasons, strict=True) if reason is not None}
            for study in batch:
                tally.add(study, bad)
    return CheckReport(
        splits={name: SplitCount(tally.studies[name], dict(tally.views[name])) for name in SPLITS},
        patients=len(tally.patients),
        decoded=decode,
        problems=(*log.problems, *stopped),
        missing_files=tally.missing | {p.missing_file: p.reason for p in log.problems if p.missing_file is not None},
        corrupt_files=tally.corrupt,
        duplicate_ids={study_id: count for study_id, count in tally.ids.items() if count > 1},
        patients_in_two_splits={
            patient: tuple(name for name in SPLITS if name in splits)
            for patient, splits in tally.patients.items()
            if len(splits) > 1
        },
        empty_reports=tuple(tally.empty),
        words={least: tally.words[least] for least in WORD_BINS},
        skipped=dict(log.skipped),
    )


def readable(images: Iterable[Image]) -> bool:
    """Whether all of `images` can be decoded."""
    return all(_looks_wrong(image.path, True) is None for image in images)


def _until_error(studies: Iterable[Study], stopped: list[Problem]) -> Iterator[Study]:
    try:
        yield from studies
    except UserError as error:
        stopped.append(Problem("reading stopped", NO_FIELD, str(error)))


def _looks_wrong(path: Path, decode: bool) -> str | None:
    """What is wrong with an image file."""
    try:
        if decode:
            load_image(path, _SIZE)
        else:
            image_size(path)
    except UserError as error:
        return str(error)
    return None
