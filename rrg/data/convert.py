"""Writes studies in another format: `r2gen`, `rexrank`, `jsonl` or `csv`.

Kept: ids, splits, images with their views, the four sections verbatim, patients, and, in r2gen, boxes. Finding labels
and region sentences have no place in these formats and are left out; age and sex of ReXrank were never read.

The images come to `images/<id>/<number>.<ending>` (a character that a file name can't have becomes "_"), as links to
the old files, as copies, or not at all: then the paths are written all the same, so that the annotation of IU-Xray
fits R2Gen's own folder of images.

The output folder appears when it is complete: everything is written beside it and renamed at the end.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

from rrg.data.formats.table import COLUMNS, SEPARATOR
from rrg.data.images import image_size
from rrg.data.study import Study
from rrg.data.studyset import SPLITS
from rrg.errors import UserError

Images = Literal["link", "copy", "none"]
IMAGES: Final[tuple[Images, ...]] = get_args(Images)
Row = tuple[Study, list[str]]  # a study with the paths of its images below images/

_SECTIONS: Final = ("findings", "impression", "indication", "comparison")


def convert(studies: Iterable[Study], target_format: str, out: Path, copy_images: Images = "link") -> int:
    """Writes `studies` to the new folder `out` and returns how many there were.

    Raises `UserError` for an unknown format or way with images, an output folder with something in it, and for an id
    that comes twice.
    """
    write = _WRITERS.get(target_format)
    if write is None:
        raise UserError(f"--to {target_format}: one of {', '.join(TARGETS)}")
    if copy_images not in IMAGES:
        raise UserError(f"--images {copy_images}: one of {', '.join(IMAGES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder; name a new one, nothing is overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as part:
        folder = Path(part) / "set"
        folder.mkdir()
        count = write(folder, _with_images(studies, folder / "images", copy_images))
        folder.replace(out)
    return count


def _with_images(studies: Iterable[Study], folder: Path, how: Images) -> Iterator[Row]:
    """Each study with its images' new paths, after putting them there."""
    seen: set[str] = set()
    for study in studies:
        name = _file_name(study.id)
        if name in seen:
            raise UserError(f"study {study.id!r}: its id, or the folder {name!r} it needs, comes twice")
        seen.add(name)
        paths = []
        for index, image in enumerate(study.images):
            paths.append(f"{name}/{index}{image.path.suffix.lower()}")
            _put(image.path, folder / paths[-1], how)
        yield study, paths


def _file_name(study_id: str) -> str:
    return re.sub(r"[^\w.-]|^\.+", "_", study_id)


def _put(old: Path, new: Path, how: Images) -> None:
    if how == "none":
        return
    new.parent.mkdir(parents=True, exist_ok=True)
    if how == "link":
        new.symlink_to(old.resolve())
    else:
        shutil.copyfile(old, new)


def _sections(study: Study) -> dict[str, str]:
    return {name: getattr(study.report, name) for name in _SECTIONS}


def _r2gen(folder: Path, rows: Iterator[Row]) -> int:
    content: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for study, paths in rows:
        sections = _sections(study)
        record = {
            "id": study.id,
            "report": sections.pop("findings"),
            "image_path": paths,
            "split": study.split,
            "view": [image.view for image in study.images],
            **{name: text for name, text in sections.items() if text},
            **({"patient": study.patient} if study.patient else {}),
            **({"boxes_xyxy": _pixel_boxes(study)} if study.boxes else {}),
        }
        content[study.split].append(record)
    _dump(content, folder / "annotation.json")
    return sum(len(records) for records in content.values())


def _pixel_boxes(study: Study) -> dict[str, list[float]]:
    """Boxes in pixels of the first image: the way back from `rrg.data.images.padded_box`."""
    width, height = image_size(study.images[0].path)
    side = max(width, height)
    dx, dy = (side - width) / 2, (side - height) / 2
    return {
        region.replace(" ", "_"): [
            round(value * side - pad, 3) for value, pad in ((b.x0, dx), (b.y0, dy), (b.x1, dx), (b.y1, dy))
        ]
        for region, b in (study.boxes or {}).items()
    }


def _rexrank(folder: Path, rows: Iterator[Row]) -> int:
    content = {}
    for study, paths in rows:
        report = study.report
        content[study.id] = {
            "image_path": paths,
            "key_image_path": paths[0],
            "frontal_lateral": [image.view.capitalize() for image in study.images],
            "report": f"Findings: {report.findings or None} Impression: {report.impression or None}",
            "section_findings": report.findings,
            "section_impression": report.impression,
            "split": study.split,
            "context": _context(study),
            **({"subject_id": study.patient} if study.patient else {}),
        }
    _dump(content, folder / "studies.json")
    return len(content)


def _context(study: Study) -> str:
    given = (("Indication", study.report.indication), ("Comparison", study.report.comparison))
    return " ".join(f"{name}: {text}" for name, text in given if text)


def _table_row(study: Study, paths: list[str]) -> dict[str, Any]:
    return {
        "id": study.id,
        "split": study.split,
        "image_path": [f"images/{path}" for path in paths],
        "view": [image.view for image in study.images],
        **_sections(study),
        "patient": study.patient or "",
    }


def _jsonl(folder: Path, rows: Iterator[Row]) -> int:
    count = 0
    with (folder / "studies.jsonl").open("w", encoding="utf-8") as file:
        for study, paths in rows:
            file.write(json.dumps(_table_row(study, paths), ensure_ascii=False) + "\n")
            count += 1
    return count


def _csv(folder: Path, rows: Iterator[Row]) -> int:
    count = 0
    with (folder / "studies.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for study, paths in rows:
            row = _table_row(study, paths)
            writer.writerow(row | {name: SEPARATOR.join(row[name]) for name in ("image_path", "view")})
            count += 1
    return count


def _dump(content: object, path: Path) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


_WRITERS: Final[Mapping[str, Callable[[Path, Iterator[Row]], int]]] = {
    "r2gen": _r2gen,
    "rexrank": _rexrank,
    "jsonl": _jsonl,
    "csv": _csv,
}
TARGETS: Final = tuple(_WRITERS)
