"""PNG and JPEG files: damaged ones are named, sizes come from the header."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from rrg.data.images import image_size, load_image
from rrg.errors import UserError


@pytest.fixture
def picture() -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400)).astype(np.uint8))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path, picture: PILImage.Image, ending: str) -> None:
    path = tmp_path / f"cut.{ending}"
    picture.save(path)
    whole = path.read_bytes()
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"cut\.{ending}.*restore the file or drop the study"):
            load_image(path, 32)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_noise_in_a_file_is_a_message_or_a_picture(tmp_path: Path, picture: PILImage.Image, ending: str) -> None:
    path = tmp_path / f"noise.{ending}"
    picture.save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(0, 800, 4):
            damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        for read in (lambda: load_image(path, 16), lambda: image_size(path)):
            with contextlib.suppress(UserError):
                read()


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jpg: image is missing"):
        load_image(tmp_path / "gone.jpg", 32)
    with pytest.raises(UserError, match="can't be read"):
        load_image(tmp_path, 32)


def test_the_size_is_that_of_the_picture_as_it_is_shown(tmp_path: Path, picture: PILImage.Image) -> None:
    turned = PILImage.Exif()
    turned[0x0112] = 6
    for ending in ("jpg", "png"):
        picture.save(tmp_path / f"a.{ending}")
        picture.save(tmp_path / f"turned.{ending}", exif=turned)
        assert image_size(tmp_path / f"a.{ending}") == (400, 300)
        assert image_size(tmp_path / f"turned.{ending}") == (300, 400)
        assert load_image(tmp_path / f"turned.{ending}", 400)[200, :45].max() == 0


def test_the_size_of_a_file_with_damaged_pixels_is_still_known(tmp_path: Path, picture: PILImage.Image) -> None:
    path = tmp_path / "cut.png"
    picture.save(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert image_size(path) == (400, 300)
