"""What the model saw, as a picture: the X-ray with the boxes of its significant regions, and their sentences below.

Contract: a region has one colour, in the picture, in pages and in the terminal alike. The picture is the study's first
frontal image, for that is what boxes refer to (else its first image, without boxes).
"""

from __future__ import annotations

import base64
import io
import textwrap
from pathlib import Path
from typing import Final

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from rrg.data.images import load_image
from rrg.data.study import Study
from rrg.model.evidence import SIGNIFICANT, Evidence, RegionEvidence, first_frontal

# Told apart on grey by people who see few colours (Okabe & Ito 2008).
COLOURS: Final = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff")
_LINE: Final = 24
_FONT: Final = 16
_MARGIN: Final = 10
# Of the font's width, by its size: enough for what the model writes.
_LETTER: Final = 0.52


def significant(evidence: Evidence) -> list[tuple[RegionEvidence, str]]:
    """The regions with a significance of at least `SIGNIFICANT`, the most significant first, each with its colour."""
    chosen = sorted((one for one in evidence if one.significance >= SIGNIFICANT), key=lambda one: -one.significance)
    return [(one, COLOURS[index % len(COLOURS)]) for index, one in enumerate(chosen)]


def data_uri(path: Path, side: int, kind: str, **options: int) -> str:
    """The image as a page holds it, without a file: its square of `side` pixels, as "png" or "jpeg" with Pillow's
    `options`. Raises UserError where it can't be read."""
    encoded = io.BytesIO()
    PILImage.fromarray(load_image(path, side)).save(encoded, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def draw_regions(study: Study, evidence: Evidence, side: int = 768) -> PILImage.Image:
    """RGB, `side` pixels wide: the X-ray's square, and below it a line or more for each significant region.

    Raises UserError where the image can't be read.
    """
    frontal = first_frontal(study)
    shown = significant(evidence)
    lines = [(line, colour) for one, colour in shown for line in _lines(one, side)]
    height = side + (len(lines) * _LINE + 2 * _MARGIN if lines else 0)
    picture = PILImage.new("RGB", (side, height), "black")
    picture.paste(PILImage.fromarray(load_image(study.images[frontal or 0].path, side)).convert("RGB"), (0, 0))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT)
    for one, colour in shown:
        if one.box is not None and frontal is not None:
            x0, y0, x1, y1 = (round(corner * (side - 1)) for corner in one.box)
            draw.rectangle((x0, y0, x1, y1), outline=colour, width=max(2, side // 256))
    for index, (line, colour) in enumerate(lines):
        draw.text((_MARGIN, side + _MARGIN + index * _LINE), line, fill=colour, font=font)
    return picture


def _lines(one: RegionEvidence, side: int) -> list[str]:
    sentence = "" if one.sentence is None else f": {one.sentence}"
    columns = int((side - 2 * _MARGIN) / (_FONT * _LETTER))
    return textwrap.wrap(f"{one.region} {one.significance:.2f}{sentence}", columns, subsequent_indent="    ")
