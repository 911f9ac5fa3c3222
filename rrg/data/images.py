"""The one way from an image file (PNG, JPEG, DICOM) to pixels, shared by training, rollouts and inference."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from rrg.data.dicom import IN_A_SET, dicom_size, is_dicom, read_dicom
from rrg.errors import UserError

# What Pillow raises for damaged files; a truncated one is an OSError, as is one of no known format.
_DAMAGED: Final = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
    zlib.error, PILImage.DecompressionBombError,
)  # fmt: skip
_ORIENTATION: Final = 0x0112
_LYING: Final = (5, 6, 7, 8)


def load_image(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """8-bit grey pixels [size, size]: the whole picture scaled to fit (antialiased), centred, padded with black.

    DICOM files are windowed as they say (`rrg.data.dicom`); other 16-bit and floating-point files are stretched from
    their own minimum and maximum. A missing, truncated or unreadable file is a `UserError` that names it.
    """
    try:
        if is_dicom(path):
            image = PILImage.fromarray(np.rint(read_dicom(path)).astype(np.uint8))
        else:
            image = _open_grey(path, size)
    except UserError:
        raise
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    if image.size != (size, size):
        image = ImageOps.pad(image, (size, size), method=PILImage.Resampling.BILINEAR, color=0)
    return np.asarray(image, dtype=np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture as `load_image` sees it, from the header alone; raises the same errors."""
    try:
        if is_dicom(path):
            return dicom_size(path)
        with PILImage.open(path) as opened:
            # Asked for its EXIF data, a PNG that has none up front is decoded in search of them.
            known = opened.format != "PNG" or "exif" in opened.info
            lying = known and opened.getexif().get(_ORIENTATION) in _LYING
            return (opened.height, opened.width) if lying else (opened.width, opened.height)
    except UserError:
        raise
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: image is missing{IN_A_SET}")
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path}: is not a PNG, JPEG or DICOM image{IN_A_SET}")
    return UserError(f"{path}: image can't be read ({error}){IN_A_SET}")


def _open_grey(path: Path, size: int) -> PILImage.Image:
    with PILImage.open(path) as opened:
        opened.draft("L", (size, size))
        return _to_grey(ImageOps.exif_transpose(opened))


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
