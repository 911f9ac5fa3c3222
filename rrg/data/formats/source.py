"""Where a data set lies, and how its files are opened: the same for every reader.

Contract: what makes a whole file useless (missing, not UTF-8, truncated, another header) is a `UserError` that names
it; a path that a record gives never leaves the data set's folder.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from rrg.errors import UserError

_NAME: Final = re.compile(r"[\w.-]+(?: [\w.-]+){0,3}")


@dataclass(frozen=True)
class Source:
    """`root` folder (or file, for formats of one file); the others are for MIMIC-CXR.

    `reports`: folder or zip of the report texts, None where they lie in `root`. `imagenome`: folder of Chest ImaGenome.
    `views`: "all" or "frontal".
    """

    root: Path
    reports: Path | None = None
    imagenome: Path | None = None
    views: str = "all"


class UnsafePathError(ValueError):
    """A record's path points outside of its data set."""


def safe_path(root: Path, name: str) -> Path:
    """`root / name`; raises `UnsafePathError` for absolute paths and those that climb out of `root`."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UnsafePathError(f"{name!r} points outside of {root}")
    return root / path


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises `UserError` where it is missing or something else."""
    with _readable(path), _open(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `UserError` where it is missing or something else."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error})") from error


def open_csv(path: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row by column name) of a CSV file (`.gz` too), one at a time; a missing cell is "".

    Raises `UserError` where the file is missing, not UTF-8 or truncated, lacks one of `columns`, or has a row with more
    cells than the header.
    """
    with _readable(path), _open(path) as file:
        reader = csv.DictReader(file, delimiter=delimiter, restval="")
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path}: the header lacks {', '.join(missing)}; it has {names(reader.fieldnames or ())}")
        for row in reader:
            if None in row:
                raise UserError(f"{path}: line {reader.line_num} has more cells than the header; quote its text")
            yield reader.line_num, dict(row)


def open_zip(path: Path) -> zipfile.ZipFile:
    """An archive for reading. Raises `UserError` where it is none or can't be opened."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is no zip file or truncated ({error}); fetch it again") from error


def names(header: Iterable[object]) -> str:
    """Column names for a message; not what looks like report text (a table without a header)."""
    listed = [str(name) for name in header]
    if not all(_NAME.fullmatch(name) for name in listed):
        return f"{len(listed)} cells that look like no header"
    return ", ".join(listed) or "nothing"


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what a bad file raises while it is read into a message."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); convert it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or no gzip file ({error}); fetch it again") from error
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file ({error})") from error
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error})") from error
