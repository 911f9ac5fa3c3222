"""DICOM files written by pydicom come out as grey levels the way a viewer shows them."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image as PILImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from rrg.data.dicom import read_dicom
from rrg.data.images import image_size, load_image
from rrg.errors import UserError

RAMP = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (32, 1))


def write(path: Path, pixels: npt.NDArray[Any] | None = RAMP, bits: int = 12, **fields: Any) -> Path:
    """A DX file with these values; `fields` are set last."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data.Modality, data.SamplesPerPixel, data.PhotometricInterpretation = "DX", 1, "MONOCHROME2"
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape
        data.BitsAllocated, data.BitsStored, data.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes()
        data["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 else "OB"
    for name, value in fields.items():
        setattr(data, name, value)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def lut(values: npt.NDArray[np.uint16], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return Sequence([item])


def test_values_without_a_window_are_stretched_over_all_grey_levels(tmp_path: Path) -> None:
    grey = read_dicom(write(tmp_path / "a.dcm"))
    assert grey.shape == (32, 64)
    assert (grey.min(), grey.max()) == (0, 255)
    assert np.all(np.diff(grey[0]) > 0)


def test_eight_bit_values_are_taken_as_they_are(tmp_path: Path) -> None:
    pixels = np.full((8, 8), 77, np.uint8)
    assert np.all(read_dicom(write(tmp_path / "a.dcm", pixels, bits=8)) == 77)


def test_monochrome1_is_the_inverse_of_monochrome2(tmp_path: Path) -> None:
    fields = {"WindowCenter": 1000, "WindowWidth": 1500}
    plain = read_dicom(write(tmp_path / "a.dcm", **fields))
    inverse = read_dicom(write(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1", **fields))
    assert np.allclose(plain + inverse, 255, atol=1e-3)
    assert plain[0, 0] == 0


def test_the_first_window_decides_what_is_black_and_white(tmp_path: Path) -> None:
    grey = read_dicom(write(tmp_path / "a.dcm", WindowCenter=[2048, 9], WindowWidth=[1024, 9]))
    assert np.all(grey[RAMP <= 1536] == 0)
    assert np.all(grey[RAMP >= 2560] == 255)
    assert grey[0, 32] == pytest.approx(127.5, abs=0.3)


def test_a_picture_that_does_not_fill_its_window_is_not_stretched(tmp_path: Path) -> None:
    grey = read_dicom(write(tmp_path / "a.dcm", np.full((4, 4), 2048, np.uint16), WindowCenter=2048, WindowWidth=4096))
    assert grey.mean() == pytest.approx(127.5, abs=0.5)


def test_a_sigmoid_window_is_followed(tmp_path: Path) -> None:
    fields = {"WindowCenter": 2048, "WindowWidth": 1024, "VOILUTFunction": "SIGMOID"}
    grey = read_dicom(write(tmp_path / "a.dcm", **fields))
    assert grey[0, 32] == pytest.approx(127.5, abs=0.1)
    assert 0 < grey[0, 16] < 5


def test_the_window_holds_for_the_rescaled_values(tmp_path: Path) -> None:
    fields = {"WindowCenter": 0, "WindowWidth": 2048, "RescaleSlope": 2, "RescaleIntercept": -4096}
    grey = read_dicom(write(tmp_path / "a.dcm", **fields))
    assert grey[0, 32] == pytest.approx(127.5, abs=0.2)
    assert np.all(grey[RAMP <= 1536] == 0)


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.uint16, 0, 65535), (np.int16, -32768, 32767)])
def test_sixteen_bit_values_keep_their_order(tmp_path: Path, dtype: Any, low: int, high: int) -> None:
    pixels = np.tile(np.linspace(low, high, 256).astype(dtype), (4, 1))
    grey = read_dicom(write(tmp_path / "a.dcm", pixels, bits=16))
    assert np.allclose(grey[0], np.arange(256), atol=0.6)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_voi_lut_sequence_goes_before_the_window(tmp_path: Path, bits: int) -> None:
    top = 2**bits - 1
    falling = np.linspace(top, 0, 2048).astype(np.uint16)
    path = write(tmp_path / "a.dcm", VOILUTSequence=lut(falling, 1024, bits), WindowCenter=9, WindowWidth=9)
    grey = read_dicom(path)
    assert np.all(grey[RAMP <= 1024] == 255)
    assert np.all(grey[RAMP >= 3072] == 0)
    assert grey[0, 32] == pytest.approx(127.5, abs=0.6)


def test_a_modality_lut_sequence_is_applied(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", ModalityLUTSequence=lut(np.arange(4096, dtype=np.uint16)[::-1], 0, 12))
    assert np.all(np.diff(read_dicom(path)[0]) < 0)


def test_run_length_encoding_needs_no_plugin(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.dcm")
    data = pydicom.dcmread(plain)
    data.compress(RLELossless)
    data.save_as(tmp_path / "b.dcm")
    assert np.array_equal(read_dicom(plain), read_dicom(tmp_path / "b.dcm"))


@pytest.mark.parametrize(("syntax", "bits"), [(JPEGBaseline8Bit, 8), (JPEG2000Lossless, 8), (JPEG2000Lossless, 16)])
def test_what_pillow_decodes_needs_no_plugin_either(tmp_path: Path, syntax: UID, bits: int) -> None:
    kind = np.uint8 if bits == 8 else np.uint16
    pixels = np.tile(np.linspace(0, 2**bits - 1, 64).astype(kind), (64, 1))
    plain, stream = write(tmp_path / "a.dcm", pixels, bits), io.BytesIO()
    PILImage.fromarray(pixels).save(stream, "JPEG" if syntax == JPEGBaseline8Bit else "JPEG2000", no_jp2=True)
    data = pydicom.dcmread(plain)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "b.dcm")
    assert np.allclose(read_dicom(tmp_path / "b.dcm"), read_dicom(plain), atol=0 if "2000" in syntax.name else 3)


def test_a_compression_without_decoder_is_refused_with_the_plugin_to_install(tmp_path: Path) -> None:
    data = pydicom.dcmread(write(tmp_path / "a.dcm"))
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "b.dcm")
    with pytest.raises(UserError, match=r"b\.dcm.*JPEG Lossless.*pylibjpeg"):
        load_image(tmp_path / "b.dcm", 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pixels": None, "Modality": "SR"}, "without pixels.*SR"),
        ({"Modality": "CT"}, "no grey X-ray.*CT"),
        ({"PhotometricInterpretation": "YBR_FULL"}, "no grey X-ray.*YBR_FULL"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "Window Width"),
        ({"BitsAllocated": 8}, "can't be read as DICOM"),
    ],
)
def test_what_is_no_xray_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "odd.dcm", **fields)
    with pytest.raises(UserError, match=rf"odd\.dcm.*{message}"):
        load_image(path, 32)


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.dcm", WindowCenter=9, WindowWidth=9).read_bytes()
    for length in (0, 1, 100, 131, 132, 200, 300, 500, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.dcm"):
            load_image(tmp_path / "cut.dcm", 32)


def test_noise_in_a_header_is_a_message_or_a_picture(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.dcm", WindowCenter=9, WindowWidth=9).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(132, 700, 3):
            damaged[place] = int(rng.integers(256))
        (tmp_path / "noise.dcm").write_bytes(damaged)
        with contextlib.suppress(UserError):
            assert load_image(tmp_path / "noise.dcm", 16).shape == (16, 16)


def test_the_one_way_to_pixels_reads_dicom_too_by_name_or_by_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm")
    pixels = load_image(path, 64)
    assert pixels.dtype == np.uint8
    assert pixels[:15].max() == 0
    assert pixels[32, 63] > 240
    nameless = path.rename(tmp_path / "nameless")
    assert np.array_equal(load_image(nameless, 64), pixels)
    assert image_size(nameless) == (64, 32)
