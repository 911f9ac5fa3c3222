"""The studies that a system did worst on: an HTML page with pictures and reports, or a PNG of the pictures.

Contract: the page holds report text, which no other output does; it is one file that loads nothing from elsewhere.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from learner.evaluation.bootstrap import Array
from learner.evaluation.predictions import Prediction
from rrg.data.study import Study
from rrg.errors import UserError

SUFFIXES: Final = (".html", ".png")
_SIDE = 320
_STYLE: Final = (
    "body{font:15px/1.45 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "article{display:flex;gap:1.2em;border-top:1px solid #ccc;padding:1em 0}"
    "img{width:320px;height:320px;background:#000}h2{font-size:1em;margin:0}h3{font-size:.85em;margin:.8em 0 0}"
    "p{margin:.2em 0;white-space:pre-wrap}small{color:#555}"
)


@dataclass(frozen=True)
class Case:
    """One study of the sheet; `scores` are what is told of it."""

    row: Prediction
    study: Study | None
    scores: Mapping[str, float]


def worst_cases(
    rows: Sequence[Prediction], studies: Sequence[Study] | None, per_study: Mapping[str, Array], by: str, count: int
) -> list[Case]:
    """The `count` studies with the lowest `by`, lowest first; those without it are left out."""
    order = [int(index) for index in np.argsort(per_study[by], kind="stable") if np.isfinite(per_study[by][index])]
    return [
        Case(
            rows[index],
            None if studies is None else studies[index],
            {name: float(values[index]) for name, values in per_study.items()},
        )
        for index in order[:count]
    ]


def write_worst(path: Path, cases: Sequence[Case], by: str) -> None:
    """Writes the sheet; the suffix of `path` says which. Raises UserError where a PNG would have no pictures."""
    if path.suffix.lower() == ".html":
        path.write_text(_page(cases, by), encoding="utf-8")
        return
    from rrg.data.sheet import draw_sheet

    studies = [case.study for case in cases if case.study is not None and case.study.images]
    if not studies:
        raise UserError(f"--worst {path.name}: no pictures are known (--format and --root); .html needs none")
    draw_sheet(studies, columns=min(5, len(studies))).save(path)


def _page(cases: Sequence[Case], by: str) -> str:
    title = f"The {len(cases)} studies with the lowest {by}"
    body = "".join(_article(case) for case in cases)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body><h1>{title}</h1>{body}</body></html>\n"


def _article(case: Case) -> str:
    scores = "  ".join(f"{name} {value:.3f}" for name, value in case.scores.items())
    findings = case.study.findings if case.study is not None else None
    known = "" if findings is None else f"<p>findings: {html.escape(', '.join(sorted(findings)) or 'none')}</p>"
    texts = "".join(
        f"<h3>{title}</h3><p>{html.escape(text) or '<small>(empty)</small>'}</p>"
        for title, text in (("Reference", case.row.reference), ("Generated", case.row.hypothesis))
    )
    about = f"<h2>{html.escape(case.row.id)}</h2><small>{html.escape(scores)}</small>"
    return f"<article>{_picture(case.study)}<div>{about}{known}{texts}</div></article>"


def _picture(study: Study | None) -> str:
    if study is None or not study.images:
        return ""
    from PIL import Image as PILImage

    from rrg.data.images import load_image

    buffer = io.BytesIO()
    PILImage.fromarray(load_image(study.images[0].path, _SIDE)).save(buffer, "JPEG", quality=85)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="first X-ray of the study" src="data:image/jpeg;base64,{encoded}">'
