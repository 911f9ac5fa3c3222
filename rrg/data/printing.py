"""What `python -m rrg.data` prints. Never the text of a report."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from rrg.data.checks import CheckReport
from rrg.data.studyset import NO_FIELD


def print_progress(name: str, done: int, total: int) -> None:
    """A counter on stderr, in one line."""
    print(f"\r{name}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def print_report(report: CheckReport, most: int | None) -> None:
    """The counts, and the first `most` items of each kind of trouble (None: all)."""
    for name, split in report.splits.items():
        views = ", ".join(f"{count} {view}" for view, count in sorted(split.images.items())) or "no images"
        print(f"{name:5s} {split.studies:6d} studies, {views}")
    print(f"{report.patients or 'no'} patients known; images {'decoded' if report.decoded else 'not decoded'}")
    print("words in the findings section: " + ", ".join(_bins(report)))
    for reason, count in report.skipped.items():
        print(f"skipped on purpose: {count}, {reason}")
    print(f"without findings: {len(report.empty_reports)} studies")
    _list("bad records", (str(problem) for problem in report.problems), len(report.problems), most)
    # "study 50414200: image" is one field of many studies.
    fields = Counter(one.field.rsplit(": ", 1)[-1] for one in report.problems if one.field != NO_FIELD)
    if fields:
        print("  by field: " + ", ".join(f"{field} {count}" for field, count in fields.most_common(10)))
    _list("missing files", report.missing_files, len(report.missing_files), most)
    _list("corrupt files", report.corrupt_files.values(), len(report.corrupt_files), most)
    duplicates = (f"{study_id}: {count} times" for study_id, count in report.duplicate_ids.items())
    _list("duplicate ids", duplicates, len(report.duplicate_ids), most)
    crossing = (f"{patient}: {', '.join(splits)}" for patient, splits in report.patients_in_two_splits.items())
    _list("patients in two splits", crossing, len(report.patients_in_two_splits), most)
    print("nothing wrong" if report.ok else "something is wrong" if report.studies else "no study at all")


def _bins(report: CheckReport) -> list[str]:
    least = sorted(report.words)
    ends = [str(after - 1) for after in least[1:]]
    names = [str(low) if str(low) == high else f"{low}-{high}" for low, high in zip(least, ends, strict=False)]
    return [f"{name}: {report.words[low]}" for name, low in zip([*names, f"{least[-1]}+"], least, strict=True)]


def _list(title: str, items: Iterable[str], count: int, most: int | None) -> None:
    print(f"{title}: {count}")
    for item in islice(items, most):
        print(f"  {item}")
    if most is not None and count > most:
        print(f"  and {count - most} more (--all)")
