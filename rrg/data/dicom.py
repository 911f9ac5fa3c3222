"""DICOM X-rays: from the stored values to grey levels, as a viewer shows them.

Contract: modality LUT or rescale, then VOI LUT (preferred) or window, then MONOCHROME1 inverted (PS3.3 C.11.1, C.11.2,
C.7.6.3.1.2); 0 is black and 255 white. Of several windows or frames the first counts. Values without a window are
stretched from their own minimum and maximum, 8-bit ones taken as they are. What isn't a readable grey X-ray is a
`UserError` that names the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_rescale, apply_windowing

from rrg.errors import UserError

Grey = npt.NDArray[np.float32]
IN_A_SET: Final = "; restore the file or drop the study"
"""How a message about a file that can't be read ends: advice for data sets."""

_SUFFIXES: Final = (".dcm", ".dicom")
_FORCE: Final = " Use force=True to force reading."  # pydicom's advice to programmers
_MAGIC_AT: Final = 128
# Pictures of other machines; a missing modality (anonymised files) is taken for an X-ray.
_NO_XRAY: Final = ("CT", "MR", "US", "PT", "NM", "MG", "OPT", "ECG")


def is_dicom(path: Path) -> bool:
    """By the name, or by the first bytes where the name says nothing. Raises `OSError` if it can't be read."""
    if path.suffix.lower() in _SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(_MAGIC_AT + 4)[_MAGIC_AT:] == b"DICM"


def read_dicom(path: Path) -> Grey:
    """Grey levels [height, width] in 0..255."""
    with _parsing(path):
        data = pydicom.dcmread(path)
        _check_kind(path, data, "PixelData" in data)
        _check_codec(path, data)
        values = np.asarray(data.pixel_array)
        values = values[0] if int(data.get("NumberOfFrames") or 1) > 1 else values
        with np.errstate(over="ignore"):
            shown, low, high = _shown(values, data)
        grey = np.clip((shown - low) * (255.0 / max(high - low, 1e-6)), 0, 255).astype(np.float32)
        if not np.isfinite(grey).all():
            raise ValueError("the rescale or the window is no number")
        return 255 - grey if data.PhotometricInterpretation == "MONOCHROME1" else grey


def dicom_size(path: Path) -> tuple[int, int]:
    """(width, height), from the header alone."""
    with _parsing(path):
        data = pydicom.dcmread(path, stop_before_pixels=True)
        _check_kind(path, data, True)
        return int(data.Columns), int(data.Rows)


def view_position(path: Path) -> str:
    """ViewPosition of the header, such as "PA"; "" where it has none or can't be read (`read_dicom` says why)."""
    try:
        with _parsing(path):
            return str(pydicom.dcmread(path, stop_before_pixels=True).get("ViewPosition") or "")
    except UserError:
        return ""


@contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file makes pydicom raise, at any access, into a message."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: image is missing{IN_A_SET}") from error
    # pydicom converts elements when they are asked for, and its errors have no common base.
    except Exception as error:
        reason = " ".join(str(error).split()).removesuffix(_FORCE)[:200] or type(error).__name__
        raise UserError(f"{path}: image can't be read as DICOM ({reason}){IN_A_SET}") from error


def _check_kind(path: Path, data: pydicom.Dataset, has_pixels: bool) -> None:
    """Raises `UserError` for what isn't a grey X-ray."""
    modality, photometric = str(data.get("Modality") or ""), str(data.get("PhotometricInterpretation") or "")
    if not (has_pixels and data.get("Rows") and data.get("Columns")):
        raise UserError(f"{path}: DICOM file without pixels (Modality {modality or 'not given'}); drop it")
    if modality in _NO_XRAY or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(
            f"{path}: no grey X-ray (Modality {modality or 'not given'}, PhotometricInterpretation "
            f"{photometric or 'not given'}); drop it"
        )


def _check_codec(path: Path, data: pydicom.Dataset) -> None:
    """Raises `UserError` where pydicom has no decoder for the file's compression."""
    syntax = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
    if syntax is None or not syntax.is_compressed:
        return
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise UserError(
            f"{path}: compressed as {syntax.name}, which needs a plugin: "
            "pip install 'pylibjpeg[all]', or decompress the file (dcmdjpeg, gdcmconv --raw)"
        )


def _shown(values: npt.NDArray[np.generic], data: pydicom.Dataset) -> tuple[npt.NDArray[np.float64], float, float]:
    """Values after modality and VOI, and those that stand for black and white."""
    modality, voi = data.get("ModalityLUTSequence"), data.get("VOILUTSequence")
    inside: npt.NDArray[np.generic]
    inside = _look_up(values, modality[0], data)[0] if modality else apply_rescale(values, data)
    if voi and "LUTData" in voi[0]:
        shown, bits = _look_up(inside, voi[0], data)
        return shown, 0.0, 2.0**bits - 1
    if data.get("WindowCenter") is not None and data.get("WindowWidth") is not None:
        # The window's ends, by what it makes of values far outside.
        low, high = apply_windowing(np.array([-1e12, 1e12]), data)
        return apply_windowing(inside, data), float(low), float(high)
    if int(data.BitsStored) == 8 and int(data.PixelRepresentation) == 0 and not modality:
        return values.astype(np.float64), 0.0, 255.0
    shown = inside.astype(np.float64)
    return shown, float(shown.min()), float(shown.max())


def _look_up(
    values: npt.NDArray[np.generic], item: pydicom.Dataset, data: pydicom.Dataset
) -> tuple[npt.NDArray[np.float64], int]:
    """`values` through a LUT, and its bits an entry.

    Not pydicom's `apply_voi`: version 3.0.1 indexes LUTs of 8-bit entries with 8-bit numbers.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    if isinstance(item.LUTData, bytes):
        order = "<" if data.file_meta.TransferSyntaxUID.is_little_endian else ">"
        packed = len(item.LUTData) < 2 * entries
        table = np.frombuffer(item.LUTData, np.uint8 if packed else f"{order}u2")
    else:
        table = np.asarray(item.LUTData).reshape(-1)
    if len(table) < entries:
        raise ValueError(f"LUT has {len(table)} entries and announces {entries}")
    index = np.clip(np.rint(values.astype(np.float64)) - first, 0, entries - 1).astype(np.int64)
    return table[index].astype(np.float64), bits
