"""Contact sheets: studies side by side, with their findings, and boxes around the regions that hold them."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from typing import Final

from PIL import Image as PILImage
from PIL import ImageDraw

from rrg.data.images import load_image
from rrg.data.study import Study
from rrg.errors import UserError

_TILE: Final = 336
_CAPTION: Final = 64
_HELD: Final = (255, 150, 40)
_PLAIN: Final = (90, 160, 255)
# Boxes of regions without findings are drawn too where a study has no more than these (both lungs, heart).
_FEW: Final = 4


def pick(studies: Sequence[Study], findings: frozenset[str], count: int, seed: int) -> list[Study]:
    """`count` random studies that have all of `findings`; `UserError` if none has."""
    fitting = [study for study in studies if findings <= (study.findings or frozenset())]
    if not fitting:
        raise UserError(f"no study has all of {', '.join(sorted(findings))}")
    return random.Random(seed).sample(fitting, min(count, len(fitting)))


def draw_sheet(studies: Sequence[Study], columns: int, boxes: bool = True) -> PILImage.Image:
    """The sheet, [rows * (336 + 64), columns * 336] pixels: each study's first image, captioned; boxes in orange
    where a region has findings (not around whole lungs when a part of the lung is boxed), in blue around the others of
    a study with few boxes."""
    rows = -(-len(studies) // columns)
    sheet = PILImage.new("RGB", (columns * _TILE, rows * (_TILE + _CAPTION)), "white")
    for index, study in enumerate(studies):
        left, top = (index % columns) * _TILE, (index // columns) * (_TILE + _CAPTION)
        grey = PILImage.fromarray(load_image(study.images[0].path, 224)).resize((_TILE, _TILE))
        sheet.paste(grey.convert("RGB"), (left, top))
        draw = ImageDraw.Draw(sheet)
        if boxes:
            _draw_boxes(draw, study, left, top)
        caption = ", ".join(sorted(study.findings or ())) or ("no finding" if study.findings is not None else "unknown")
        text = "\n".join(textwrap.wrap(f"{study.id}: {caption}", 54)[:4])
        draw.multiline_text((left + 4, top + _TILE + 3), text, fill="black", spacing=2)
    return sheet


def _draw_boxes(draw: ImageDraw.ImageDraw, study: Study, left: int, top: int) -> None:
    boxes = study.boxes or {}
    held = {region for region, codes in (study.region_findings or {}).items() if codes} & set(boxes)
    colours = dict.fromkeys(sorted(boxes), _PLAIN) if len(boxes) <= _FEW else {}
    for region in sorted(held):
        if region.endswith(" lung") and any(other.startswith(region.split()[0]) for other in held - {region}):
            continue
        colours[region] = _HELD
    for region, colour in colours.items():
        box = boxes[region]
        corners = (left + box.x0 * _TILE, top + box.y0 * _TILE, left + box.x1 * _TILE - 1, top + box.y1 * _TILE - 1)
        draw.rectangle(corners, outline=colour)
