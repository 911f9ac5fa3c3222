"""The picture of what was seen: boxes in the colours of the sentences below it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageColor

from rrg.data.study import Image, Report, Study, View
from rrg.model.drawing import COLOURS, draw_regions, significant
from rrg.model.evidence import RegionEvidence

SEEN = (
    RegionEvidence("spine", 0.6, (0.4, 0.1, 0.6, 0.9), {}, "a curved spine ."),
    RegionEvidence("right lung", 0.2, (0.1, 0.1, 0.4, 0.9), {}),
    RegionEvidence("left lung", 0.9, (0.62, 0.1, 0.9, 0.9), {"effusion": 0.8}, "a small effusion . " * 9),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    PILImage.fromarray(np.full((100, 100), 40, np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def study(path: Path, view: View) -> Study:
    return Study("s", "test", (Image(path, view),), Report(), "test")


def at(picture: PILImage.Image, x: int, y: int) -> object:
    return picture.getpixel((x, y))


def test_the_most_significant_region_comes_first_and_the_others_are_left_out() -> None:
    assert [(one.region, colour) for one, colour in significant(SEEN)] == [
        ("left lung", COLOURS[0]),
        ("spine", COLOURS[1]),
    ]


def test_boxes_are_drawn_in_the_colours_of_their_regions(path: Path) -> None:
    picture = draw_regions(study(path, "frontal"), SEEN, side=201)
    assert at(picture, 124, 100) == ImageColor.getrgb(COLOURS[0])
    assert at(picture, 80, 100) == ImageColor.getrgb(COLOURS[1])
    assert at(picture, 20, 100) == (40, 40, 40)


def test_the_sentences_stand_below_the_picture_in_the_same_colours(path: Path) -> None:
    picture = draw_regions(study(path, "frontal"), SEEN, side=400)
    below = np.asarray(picture)[400:].reshape(-1, 3)
    written = {tuple(map(int, colour)) for colour in below}
    assert {ImageColor.getrgb(colour) for colour in COLOURS[:2]} <= written
    assert ImageColor.getrgb(COLOURS[2]) not in written


def test_a_study_without_a_frontal_image_has_no_boxes_and_one_without_regions_only_the_picture(path: Path) -> None:
    lateral = np.asarray(draw_regions(study(path, "lateral"), SEEN, side=200))
    assert (lateral[:200] == 40).all()
    assert draw_regions(study(path, "frontal"), (), side=200).size == (200, 200)
