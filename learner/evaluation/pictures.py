"""A study's X-ray with what was seen in its regions, as HTML: boxes over the picture, scores and sentences below.

Contract: one picture a study, its first frontal image, for that is what boxes refer to (else its first image, without
boxes). Drawn are the regions with a significance of at least `SIGNIFICANT`, the most significant first; their true
boxes, where the study has them, are dashed. `learner/report/templates/page.css` has the figure's style.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

from rrg.data.study import Box, Study
from rrg.model.drawing import data_uri, significant
from rrg.model.evidence import Evidence, RegionEvidence, first_frontal

_SIDE: Final = 320


def picture(study: Study | None, evidence: Evidence) -> str:
    """The figure; nothing where no picture is known."""
    if study is None or not study.images:
        return ""
    frontal = first_frontal(study)
    shown = significant(evidence)
    boxes = "" if frontal is None else "".join(_rects(one, colour, _true(study, one)) for one, colour in shown)
    overlay = f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{boxes}</svg>' if boxes else ""
    caption = "".join(_caption(one, colour) for one, colour in shown)
    below = f"<figcaption><ul>{caption}</ul></figcaption>" if caption else ""
    return f"<figure><div>{_image(study, frontal or 0)}{overlay}</div>{below}</figure>"


def _true(study: Study, one: RegionEvidence) -> Box | None:
    return None if study.boxes is None else study.boxes.get(one.region)


def _rects(one: RegionEvidence, colour: str, true: Box | None) -> str:
    name = html.escape(one.region)
    found = "" if one.box is None else _rect(one.box, colour, "found", name)
    return found + ("" if true is None else _rect((true.x0, true.y0, true.x1, true.y1), colour, "true", name))


def _rect(corners: Sequence[float], colour: str, kind: str, name: str) -> str:
    x0, y0, x1, y1 = corners
    place = f'x="{x0:.4f}" y="{y0:.4f}" width="{x1 - x0:.4f}" height="{y1 - y0:.4f}"'
    return f'<rect class="{kind}" stroke="{colour}" {place}><title>{name} ({kind})</title></rect>'


def _caption(one: RegionEvidence, colour: str) -> str:
    sentence = "" if one.sentence is None else f": {html.escape(one.sentence)}"
    mark = f'<i style="background:{colour}"></i>'
    return f"<li>{mark}<b>{html.escape(one.region)}</b> {one.significance:.2f}{sentence}</li>"


def _image(study: Study, index: int) -> str:
    source = data_uri(study.images[index].path, _SIDE, "jpeg", quality=85)
    return f'<img alt="X-ray of the study" src="{source}">'
