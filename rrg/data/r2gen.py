"""R2Gen's annotation.json: {"train": [...], "val": [...], "test": [...]}, for IU-Xray and MIMIC-CXR.

A record has `id` (a text or a number), `report`, `image_path` (a path or a list, under `root/images/` or `root/`), and
may have `impression`, `indication`, `comparison`, `view` (one text or one an image) and `boxes_xyxy` (pixels of the
first image, "left_lung" for region "left lung"). Without `view`, the first image of a study is taken as frontal and
the others as lateral, as IU-Xray stores them; MIMIC-CXR in R2Gen's form has one image a record.

Nothing is decoded here. Records that can't be used go to the log with file, field and reason. **Findings of these
studies are derived from the report's text** by `rrg.data.mentions`, since the format carries no labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from PIL import Image as PILImage

from rrg.data.images import padded_box
from rrg.data.mentions import findings_by_region, findings_in
from rrg.data.regions import REGIONS
from rrg.data.sections import clean
from rrg.data.study import Box, Image, Report, Split, Study, View
from rrg.data.studyset import SPLITS, ProblemLog
from rrg.errors import UserError

_ANNOTATION: Final = "annotation.json"
_LATERAL: Final = frozenset({"lateral", "ll", "lat", "left lateral", "l"})


def read_annotation(root: Path) -> Mapping[Split, list[Any]]:
    """The parsed annotation.json of `root`; `UserError` if there is none or it has another shape."""
    path = root / _ANNOTATION
    if not path.is_file():
        raise UserError(f"{path} is missing: data.root must be a folder in R2Gen's layout (annotation.json, images/)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(split), list) for split in SPLITS):
        raise UserError(f'{path} must be an object with the lists "train", "val" and "test"')
    return {split: content[split] for split in SPLITS}


def read_studies(root: Path, limits: Mapping[Split, int | None], log: ProblemLog) -> list[Study]:
    """The usable studies of `root`, at most `limits[split]` of each split, in the order of the file."""
    studies: dict[str, Study] = {}
    for split, records in read_annotation(root).items():
        count = 0
        for position, record in enumerate(records):
            limit = limits[split]
            if limit is not None and count >= limit:
                break
            study = _read_record(root, split, f"{root / _ANNOTATION}[{split}][{position}]", record, log)
            if study is None:
                continue
            if study.id in studies:
                log.add(f"{root / _ANNOTATION}[{split}][{position}]", "id", f"{study.id!r} occurs twice")
                continue
            studies[study.id] = study
            count += 1
    return list(studies.values())


def _read_record(root: Path, split: Split, where: str, record: Any, log: ProblemLog) -> Study | None:
    if not isinstance(record, dict):
        log.add(where, "-", "not an object")
        return None
    study_id = record.get("id")
    if not isinstance(study_id, str | int) or str(study_id) == "":
        log.add(where, "id", "missing")
        return None
    where = f"{where} (id {study_id})"
    findings = clean(_text(record, "report"))
    if not findings:
        log.add(where, "report", "missing or empty")
        return None
    images = _images(root, where, record, log)
    if not images:
        return None
    report = Report(findings, *(clean(_text(record, name)) for name in ("impression", "indication", "comparison")))
    return Study(
        id=str(study_id),
        split=split,
        images=images,
        report=report,
        source="r2gen",
        findings=findings_in(findings),
        region_findings=findings_by_region(findings),
        boxes=_boxes(where, record, images[0], log),
    )


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""


def _images(root: Path, where: str, record: Mapping[str, Any], log: ProblemLog) -> tuple[Image, ...]:
    """The study's images, frontal first; empty if one is missing (then the log says which)."""
    paths = record.get("image_path")
    names = [paths] if isinstance(paths, str) else paths
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        log.add(where, "image_path", "must be a path or a list of paths")
        return ()
    images = []
    for index, name in enumerate(names):
        path = next((p for p in (root / "images" / name, root / name) if p.is_file()), None)
        if path is None:
            log.add(where, "image_path", f"{name} is neither under {root / 'images'} nor under {root}")
            return ()
        images.append(Image(path, _view(record.get("view"), index)))
    return tuple(sorted(images, key=lambda image: image.view != "frontal"))


def _view(views: Any, index: int) -> View:
    if isinstance(views, list):
        views = views[index] if index < len(views) else None
    if isinstance(views, str):
        return "lateral" if views.strip().lower() in _LATERAL else "frontal"
    return "frontal" if index == 0 else "lateral"


def _boxes(where: str, record: Mapping[str, Any], image: Image, log: ProblemLog) -> dict[str, Box] | None:
    """Boxes of known regions; None where the record has none. A bad box is logged and left out."""
    given = record.get("boxes_xyxy")
    if not isinstance(given, dict) or not given:
        return None
    with PILImage.open(image.path) as opened:
        width, height = opened.size
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
        if x0 >= x1 or y0 >= y1:
            log.add(where, f"boxes_xyxy.{name}", f"empty or outside of the {width}x{height} image")
            continue
        boxes[region] = Box(*padded_box((x0, y0, x1, y1), width, height))
    return boxes or None
