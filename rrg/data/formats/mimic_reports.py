"""The report texts of MIMIC-CXR: a folder, or `mimic-cxr-reports.zip` as PhysioNet publishes it, opened once.

Contract: `open_reports` gives where they are and a function from a report's path ("files/p10/p10000032/s50414267.txt")
to its text; a report that is missing or can't be read is a `BadReportError`, reports that can't be opened at all are a
`UserError`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rrg.data.formats.source import Source, open_zip, safe_path
from rrg.errors import UserError

_ZIP: Final = "mimic-cxr-reports.zip"

ReadReport = Callable[[str], str]


class BadReportError(ValueError):
    """A report is missing or can't be read."""


@contextmanager
def open_reports(source: Source) -> Iterator[tuple[Path, ReadReport]]:
    """The reports of `source.reports`, else the zip in the root, else the root."""
    place = source.reports
    if place is None:
        packed = source.root / _ZIP
        place = packed if packed.is_file() else source.root
    if not place.exists():
        raise UserError(f"data.reports={place} does not exist; it is the folder or zip of the MIMIC-CXR reports")
    if (place / "files").is_dir():
        folder = place
        yield folder, lambda member: _from_folder(folder, member)
        return
    archive_path = place / _ZIP if place.is_dir() else place
    if not archive_path.is_file():
        raise UserError(f"{place} holds neither files/ nor {_ZIP}; data.reports= is the folder or zip of the reports")
    with open_zip(archive_path) as archive:
        yield archive_path, lambda member: _from_zip(archive, member)


def _from_folder(folder: Path, member: str) -> str:
    path = safe_path(folder, member)
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError as error:
        raise BadReportError("is missing") from error
    except OSError as error:
        raise BadReportError(f"can't be read ({error.strerror or error})") from error


def _from_zip(archive: zipfile.ZipFile, member: str) -> str:
    try:
        return _decode(archive.read(member))
    except KeyError as error:
        raise BadReportError("is missing") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BadReportError(f"is damaged ({error})") from error


def _decode(content: bytes) -> str:
    """The text with the line ends that the section rules know."""
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadReportError(f"is not UTF-8 (byte {error.start}: {error.reason})") from error
