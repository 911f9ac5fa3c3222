"""Fields of a record that several formats share: its texts and its images.

Contract: a bad field goes to the log with the place, the field and the reason, and the caller gets nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rrg.data.formats.source import UnsafePathError, safe_path
from rrg.data.study import Image, Split, View
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError

_LATERAL: Final = re.compile(r"lateral|\b(?:ll|rl|lat|l)\b", re.IGNORECASE)
_FRONTAL: Final = re.compile(r"frontal|\b(?:ap|pa)\b|antero-?posterior|postero-?anterior", re.IGNORECASE)
_SPLITS: Final[Mapping[str, Split]] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def text_of(record: Mapping[str, Any], name: str) -> str:
    """The text of a field, outer white space stripped; "" where it is missing, or no text (pandas writes NaN)."""
    value = record.get(name)
    return value.strip() if isinstance(value, str) else ""


def split_of(text: str) -> Split | None:
    """The split that a word names ("validate" is MIMIC-CXR's "val"); None for another word."""
    return _SPLITS.get(text.strip().lower())


def view_of(text: str) -> View | None:
    """The view that a radiological word names ("PA", "left lateral", "antero-posterior"); None if it names none."""
    if _LATERAL.search(text):
        return "lateral"
    return "frontal" if _FRONTAL.search(text) else None


def number_of(study_id: str) -> int | None:
    """Number of the Open-i report in a study id as R2Gen writes it ("CXR2384_IM-0942" -> 2384)."""
    match = re.match(r"CXR(\d+)(?:_|$)", study_id)
    return int(match.group(1)) if match else None


def find_image(
    roots: Sequence[Path],
    name: str,
    where: str,
    log: ProblemLog,
    field: str = "image_path",
    suffixes: Sequence[str] = ("",),
) -> Path | None:
    """The image `name` + suffix under the first of `roots` that has one; None, and a line in the log, if none has."""
    try:
        paths = [safe_path(root, name + suffix) for root in roots for suffix in suffixes]
    except UnsafePathError as error:
        log.add(where, field, str(error))
        return None
    path = next((path for path in paths if os.path.isfile(path)), None)  # False for a name that is too long, too
    if path is None:
        ends = f", ending {' '.join(suffixes)}" if suffixes != ("",) else ""
        looked = ", ".join(str(root) for root in roots)
        log.add(where, field, f"{name} is missing (looked in {looked}{ends})", missing_file=name)
    return path


def find_images(
    roots: Sequence[Path], names: Any, views: Sequence[View | None], where: str, log: ProblemLog
) -> tuple[Image, ...]:
    """A study's images, frontal first; empty if the field is wrong or one is missing (the log says which).

    `views[i]` is the view of image i; where it is None or too short, the first image is frontal, the others lateral.
    """
    if names is None or names in ("", []):
        log.add(where, "image_path", "is missing")
        return ()
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) and name for name in listed):
        log.add(where, "image_path", "must be a path or a list of paths")
        return ()
    images = []
    for index, name in enumerate(listed):
        path = find_image(roots, name, where, log)
        if path is None:
            return ()
        given = views[index] if index < len(views) else None
        images.append(Image(path, given or ("frontal" if index == 0 else "lateral")))
    return frontal_first(images)


def frontal_first(images: Sequence[Image]) -> tuple[Image, ...]:
    return tuple(sorted(images, key=lambda image: image.view != "frontal"))


def only_file(root: Path, pattern: str) -> Path:
    """`root` if it is a file, else the one file of the folder that fits; `UserError` unless there is exactly one."""
    if root.is_file():
        return root
    found = sorted(root.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise UserError(f"{root} must hold exactly one {pattern} (found: {names}); or name the file itself")
    return found[0]
