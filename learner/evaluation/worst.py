"""Studies for people to look at: an HTML page with pictures, regions and reports, or a PNG of the pictures.

Contract: the page holds report text, which no other output of an evaluation does; it is one file that loads nothing
from elsewhere.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from learner.evaluation.bootstrap import Array
from learner.evaluation.pictures import STYLE, picture
from learner.evaluation.predictions import Prediction
from rrg.data.study import Study
from rrg.errors import UserError
from rrg.model.evidence import Evidence

SUFFIXES: Final = (".html", ".png")
_STYLE: Final = (
    "body{font:15px/1.45 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "article{display:flex;gap:1.2em;border-top:1px solid #ccc;padding:1em 0}"
    "h2{font-size:1em;margin:0}h3{font-size:.85em;margin:.8em 0 0}"
    "p{margin:.2em 0;white-space:pre-wrap}small{color:#555}" + STYLE
)


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


def worst_cases(cases: Sequence[Case], by: str, count: int) -> list[Case]:
    """The `count` studies with the lowest `by`, lowest first; those without it are left out."""
    scored = [case for case in cases if math.isfinite(case.scores[by])]
    return sorted(scored, key=lambda case: case.scores[by])[:count]


def write_worst(path: Path, cases: Sequence[Case], by: str) -> None:
    """Writes the sheet; the suffix of `path` says which. Raises UserError where a PNG would have no pictures."""
    if path.suffix.lower() == ".html":
        write_page(path, cases, f"The {len(cases)} studies with the lowest {by}")
        return
    from rrg.data.sheet import draw_sheet

    studies = [case.study for case in cases if case.study is not None and case.study.images]
    if not studies:
        raise UserError(f"--worst {path.name}: no pictures are known (--format and --root); .html needs none")
    draw_sheet(studies, columns=min(5, len(studies))).save(path)


def write_page(path: Path, cases: Sequence[Case], title: str) -> None:
    body = "".join(_article(case) for case in cases)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    page = f"<!doctype html><html lang=en><head>{head}</head><body><h1>{title}</h1>{body}</body></html>\n"
    path.write_text(page, encoding="utf-8")


def _article(case: Case) -> str:
    scores = "  ".join(f"{name} {value:.3f}" for name, value in case.scores.items())
    findings = case.study.findings if case.study is not None else None
    known = "" if findings is None else f"<p>findings: {html.escape(', '.join(sorted(findings)) or 'none')}</p>"
    texts = "".join(
        f"<h3>{title}</h3><p>{html.escape(text) or '<small>(empty)</small>'}</p>"
        for title, text in (("Reference", case.row.reference), ("Generated", case.row.hypothesis))
    )
    about = f"<h2>{html.escape(case.row.id)}</h2><small>{html.escape(scores)}</small>"
    return f"<article>{picture(case.study, case.evidence)}<div>{about}{known}{texts}</div></article>"
