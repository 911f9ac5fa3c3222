"""The one way from an image file to pixels, shared by training, rollouts and inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from rrg.errors import UserError


def load_image(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """8-bit grey pixels [size, size]: the whole picture scaled to fit (antialiased), centred, padded with black.

    16-bit and floating-point files are stretched from their own minimum and maximum. A missing or unreadable file is
    a `UserError` that names it.
    """
    try:
        with PILImage.open(path) as opened:
            opened.draft("L", (size, size))
            image = _to_grey(ImageOps.exif_transpose(opened))
    except (FileNotFoundError, UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: image can't be read ({error}); restore the file or drop the study") from error
    if image.size != (size, size):
        image = ImageOps.pad(image, (size, size), method=PILImage.Resampling.BILINEAR, color=0)
    return np.asarray(image, dtype=np.uint8)


def _to_grey(image: PILImage.Image) -> PILImage.Image:
    """`image` in mode L, whatever its bit depth."""
    if image.mode[0] in "IF":
        values = np.asarray(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) * (255.0 / max(high - low, 1e-6))
        return PILImage.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8), mode="L")
    return image.convert("L")


def padded_box(box: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    """A pixel box (x0, y0, x1, y1) of a width x height picture as fractions of the square that `load_image` gives."""
    side = max(width, height)
    dx, dy = (side - width) / 2, (side - height) / 2
    x0, y0, x1, y1 = box
    return (x0 + dx) / side, (y0 + dy) / side, (x1 + dx) / side, (y1 + dy) / side
