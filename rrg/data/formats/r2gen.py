"""R2Gen's annotation.json: {"train": [...], "val": [...], "test": [...]}, for IU-Xray and MIMIC-CXR.

Source: github.com/zhjohnchan/R2Gen (Chen et al., EMNLP 2020), `data/{iu_xray,mimic_cxr}/annotation.json`, `images/`.

| field | study |
|---|---|
| `id` (text or number) | id; IU-Xray: "CXR2384_IM-0942", MIMIC-CXR: the DICOM id, so one image a study |
| `report` | findings, verbatim |
| `image_path` (path or list) | images, under `root/images/` or `root/` |
| `subject_id` or `patient` | patient; else the number in an IU-Xray id (Open-i took one examination a patient) |
| `view` (ours: one text, or one an image) | views |
| `impression`, `indication`, `comparison` (ours) | those sections |
| `boxes_xyxy` (ours: {"left_lung": [x0, y0, x1, y1]}) | boxes, given in pixels of the first frontal image |

Without `view` the first image counts as frontal and the others as lateral. That is a convention, and not always true:
ReXrank's table of the same pictures has the lateral one first in 3 of the 32 studies of IU-Xray looked at.

`study_id` and `split` of the records are not needed. The file is one JSON value, so all of it is parsed at once;
studies are made one at a time and nothing is decoded (an image with boxes is opened for its size).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rrg.data.formats.fields import find_images, number_of, text_of, view_of
from rrg.data.formats.source import Source, read_json
from rrg.data.images import image_size, padded_box
from rrg.data.regions import REGIONS
from rrg.data.study import Box, Report, Split, Study, View
from rrg.data.studyset import NO_FIELD, SPLITS, ProblemLog
from rrg.errors import UserError

_ANNOTATION: Final = "annotation.json"


def read(source: Source, log: ProblemLog) -> Iterator[Study]:
    """The studies in the order of the file: train, val, test."""
    for split, records in read_annotation(source.root).items():
        for position, record in enumerate(records):
            study = _study(source.root, split, f"{source.root / _ANNOTATION}[{split}][{position}]", record, log)
            if study is not None:
                yield study


def read_annotation(root: Path) -> Mapping[Split, list[Any]]:
    """The parsed annotation.json of `root`; `UserError` if there is none or it has another shape."""
    path = root / _ANNOTATION
    if not path.is_file():
        raise UserError(f"{path} is missing: data.root must be a folder in R2Gen's layout (annotation.json, images/)")
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(split), list) for split in SPLITS):
        raise UserError(f'{path} must be an object with the lists "train", "val" and "test"')
    return {split: content[split] for split in SPLITS}


def _study(root: Path, split: Split, where: str, record: Any, log: ProblemLog) -> Study | None:
    if not isinstance(record, dict):
        log.add(where, NO_FIELD, "not an object")
        return None
    study_id = record.get("id")
    if not isinstance(study_id, str | int) or str(study_id) == "":
        log.add(where, "id", "missing")
        return None
    where = f"{where} (id {study_id})"
    report = Report(*(text_of(record, name) for name in ("report", "impression", "indication", "comparison")))
    if not report.findings and not report.impression:
        log.add(where, "report", "missing or empty")
        return None
    images = find_images((root / "images", root), record.get("image_path"), _views(record), where, log)
    if not images:
        return None
    return Study(
        id=str(study_id),
        split=split,
        images=images,
        report=report,
        source="r2gen",
        boxes=_boxes(where, record, images[0].path, log),
        patient=_patient(str(study_id), record),
    )


def _patient(study_id: str, record: Mapping[str, Any]) -> str | None:
    for name in ("patient", "subject_id"):
        if isinstance(record.get(name), str | int):
            return str(record[name])
    number = number_of(study_id)
    return None if number is None else f"CXR{number}"


def _views(record: Mapping[str, Any]) -> list[View | None]:
    """What the record says of its images; a word that names no view is taken as frontal, such as "AP Supine"."""
    given = record.get("view")
    words = given if isinstance(given, list) else [given]
    return [view_of(word) or "frontal" if isinstance(word, str) and word else None for word in words]


def _boxes(where: str, record: Mapping[str, Any], image: Path, log: ProblemLog) -> dict[str, Box] | None:
    """Boxes of known regions; None where the record has none. A bad box is logged and left out."""
    given = record.get("boxes_xyxy")
    if not isinstance(given, dict) or not given:
        return None
    try:
        width, height = image_size(image)
    except UserError as error:
        log.add(where, "boxes_xyxy", f"left out: {error}")
        return None
    boxes: dict[str, Box] = {}
    for name, corners in given.items():
        region = str(name).replace("_", " ")
        if region not in REGIONS:
            continue
        try:
            x0, y0, x1, y1 = (float(value) for value in corners)
        except (TypeError, ValueError):
            log.add(where, f"boxes_xyxy.{name}", "not four numbers")
            continue
        x0, x1, y0, y1 = max(x0, 0.0), min(x1, width), max(y0, 0.0), min(y1, height)
        if not (x0 < x1 and y0 < y1):
            log.add(where, f"boxes_xyxy.{name}", f"empty or outside of the {width}x{height} image")
            continue
        boxes[region] = Box(*padded_box((x0, y0, x1, y1), width, height))
    return boxes or None
