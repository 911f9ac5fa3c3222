"""Some studies of an evaluation on a sheet: a page with pictures, regions and reports, or a PNG of the pictures.

Contract: the page holds report text, which no other output of an evaluation does; it is one file that loads nothing
from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from learner.evaluation.worst import Case
from learner.report.gallery import card_of
from learner.report.page import write_page
from rrg.errors import UserError

SUFFIXES: Final = (".html", ".png")


def write_worst(path: Path, cases: Sequence[Case], by: str) -> None:
    """Writes the sheet; the suffix of `path` says which. Raises UserError where a PNG would have no pictures."""
    if path.suffix.lower() == ".html":
        write_cases(path, cases, f"The {len(cases)} studies with the lowest {by}")
        return
    from rrg.data.sheet import draw_sheet

    studies = [case.study for case in cases if case.study is not None and case.study.images]
    if not studies:
        raise UserError(f"--worst {path.name}: no pictures are known (--format and --root); .html needs none")
    draw_sheet(studies, columns=min(5, len(studies))).save(path)


def write_cases(path: Path, cases: Sequence[Case], title: str) -> None:
    """The studies in their order. Raises UserError for an X-ray that cannot be read."""
    write_page(path, "cases.html", title=title, cards=[card_of(case) for case in cases])
