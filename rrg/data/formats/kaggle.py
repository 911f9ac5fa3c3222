"""IU-Xray as Kaggle has it: `indiana_reports.csv`, `indiana_projections.csv` and images in `images/images_normalized/`.

Source: kaggle.com/datasets/raddar/chest-xrays-indiana-university. The images may also lie in `images/` or in `root`.

| column | study |
|---|---|
| reports: `uid` | patient, and by R2Gen's split id and split, exactly as in `rrg.data.formats.openi` |
| reports: `findings`, `impression`, `indication`, `comparison` | the sections, verbatim |
| reports: `MeSH` ("Cardiomegaly/borderline;Pulmonary Artery/enlarged") | findings, by `rrg.data.findings` |
| projections: `uid`, `filename`, `projection` | images with their view (Frontal or Lateral), which Open-i's XML lacks |

`Problems` and `image` repeat what `MeSH` and `projection` say. The projections (a small table) are held in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from rrg.data.formats.fields import find_image, frontal_first, text_of
from rrg.data.formats.openi import findings_of, place, placements
from rrg.data.formats.source import Source, open_csv
from rrg.data.study import Image, Report, Split, Study, View
from rrg.data.studyset import ProblemLog

_REPORTS: Final = "indiana_reports.csv"
_PROJECTIONS: Final = "indiana_projections.csv"
_SECTIONS: Final = ("findings", "impression", "indication", "comparison")
_VIEWS: Final[Mapping[str, View]] = {"Frontal": "frontal", "Lateral": "lateral"}


def read(source: Source, log: ProblemLog) -> Iterator[Study]:
    """The studies in the order of `indiana_reports.csv`."""
    projections = _projections(source.root / _PROJECTIONS, log)
    placed = placements()
    path = source.root / _REPORTS
    for line, row in open_csv(path, ("uid", "MeSH", *_SECTIONS)):
        study = _study(source.root, f"{path}:{line}", row, projections, placed, log)
        if study is not None:
            yield study


def _projections(path: Path, log: ProblemLog) -> dict[str, list[tuple[str, View]]]:
    """(file, view) of each image by uid."""
    images: dict[str, list[tuple[str, View]]] = defaultdict(list)
    for line, row in open_csv(path, ("uid", "filename", "projection")):
        view = _VIEWS.get(row["projection"].strip())
        if view is None:
            log.add(f"{path}:{line}", "projection", f"{row['projection']!r} is neither Frontal nor Lateral")
            continue
        images[row["uid"].strip()].append((row["filename"].strip(), view))
    return images


def _study(
    root: Path,
    where: str,
    row: Mapping[str, str],
    projections: Mapping[str, Sequence[tuple[str, View]]],
    placed: Mapping[int, tuple[Split, str]],
    log: ProblemLog,
) -> Study | None:
    uid = row["uid"].strip()
    if not (uid.isascii() and uid.isdigit()):
        log.add(where, "uid", f"{uid!r} is not a number")
        return None
    if uid not in projections:
        log.add(where, "uid", f"{uid} has no image in {_PROJECTIONS}")
        return None
    roots = (root / "images" / "images_normalized", root / "images", root)
    images = []
    for name, view in projections[uid]:
        path = find_image(roots, name, where, log, field="filename")
        if path is None:
            return None
        images.append(Image(path, view))
    split, study_id = place(int(uid), placed)
    findings, regions = findings_of(tuple(code.strip() for code in row["MeSH"].split(";") if code.strip()))
    return Study(
        id=study_id,
        split=split,
        images=frontal_first(images),
        report=Report(*(text_of(row, name) for name in _SECTIONS)),
        source="kaggle",
        findings=findings,
        region_findings=regions,
        patient=f"CXR{uid}",
    )
