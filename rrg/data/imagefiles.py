"""Studies of bare image files: X-rays that nobody has reported yet.

Contract: such a study has an empty report but for what is told of it, its split is "test", its source "files". A
file's view is the one that its DICOM header names, else the one that the last word of its name does (`a_lateral.png`,
`a-pa.jpg`), else frontal for the first and lateral for the others, as R2Gen has it. Images are not decoded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rrg.data.dicom import is_dicom, view_position
from rrg.data.formats.fields import frontal_first, view_of
from rrg.data.images import load_image
from rrg.data.sections import clean
from rrg.data.study import Image, Report, Study, View
from rrg.errors import UserError

FILES: Final = "files"
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
_CHECKED: Final = 224  # pixels


def study_of_files(
    paths: Sequence[Path],
    study_id: str,
    *,
    views: Sequence[View] | None = None,
    indication: str = "",
    comparison: str = "",
) -> Study:
    """One study of these files, frontal images first; `views` says what they show, one a file.

    Raises UserError where a file is missing, or there are not as many views as files.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}; name an image")
    if views is not None and len(views) != len(paths):
        raise UserError(f"{len(views)} views for {len(paths)} images: give one an image, in their order")
    told: Sequence[View | None] = views or [_view(path) for path in paths]
    images = [
        Image(path, view or ("frontal" if index == 0 else "lateral"), guessed=view is None)
        for index, (path, view) in enumerate(zip(paths, told, strict=True))
    ]
    return Study(
        id=study_id,
        split="test",
        images=frontal_first(images),
        report=Report(indication=clean(indication), comparison=clean(comparison)),
        source=FILES,
    )


def check_images(study: Study) -> None:
    """Raises UserError unless all images can be decoded."""
    for image in study.images:
        load_image(image.path, _CHECKED)


def studies_of_folder(folder: Path) -> tuple[list[Study], int]:
    """The studies of a folder, sorted by id, and how many of its files are no images by their names.

    Each image directly in `folder` is a study; so is every sub-folder, at any depth, that holds images itself, with all
    of them. The id is the path below `folder`. Hidden files and folders are passed over. Files without a suffix, or
    named by a UID, count where they are DICOM; links are followed. Raises UserError where the folder holds no image.
    """
    studies: list[Study] = []
    others = 0
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        if any(os.path.samefile(place, parent) for parent in Path(place).parents if parent.is_relative_to(folder)):
            raise UserError(f"{place}: a link to a folder around itself; take it out")
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place, name) for name in sorted(names) if not name.startswith(".")]
        images = [path for path in paths if _is_image(path)]
        others += len(paths) - len(images)
        groups = [[path] for path in images] if Path(place) == folder else [images] if images else []
        for group in groups:
            named = group[0] if Path(place) == folder else Path(place)
            studies.append(study_of_files(group, named.relative_to(folder).as_posix()))
    if not studies:
        raise UserError(f"{folder} holds no image ({', '.join(SUFFIXES)}, or DICOM without a suffix)")
    return sorted(studies, key=lambda study: study.id), others


def _raise(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    # A DICOM file may be named by its UID, which ends in a number.
    if suffix in SUFFIXES or not (suffix == "" or suffix[1:].isdigit()):
        return suffix in SUFFIXES
    try:
        return path.is_file() and is_dicom(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _view(path: Path) -> View | None:
    """The view that the file tells itself."""
    told = view_of(view_position(path)) if is_dicom(path) else None
    return told or view_of(re.split(r"[\W_]+", path.stem)[-1])
