"""MIMIC-CXR-JPG 2.x as PhysioNet publishes it (Johnson et al., physionet.org/content/mimic-cxr-jpg).

| of a study | from |
|---|---|
| id, patient | `study_id`, `subject_id` of `mimic-cxr-2.0.0-split.csv.gz` ("50414267", "10000032") |
| split | `split`; `validate` is "val" |
| images | `files/p10/p10000032/s50414267/<dicom_id>.jpg` for each `dicom_id` of the study |
| view | `ViewPosition` of `mimic-cxr-2.0.0-metadata.csv.gz`, see `view_of`; PA before AP before lateral, then by id |
| report | `files/p10/p10000032/s50414267.txt` of the reports (data set MIMIC-CXR) by the rules of `mimic_sections` |
| labels | `mimic-cxr-2.0.0-chexpert.csv.gz`, else `-negbio`, else none; blank (not mentioned) is left out |
| boxes, region findings and sentences, findings | Chest ImaGenome's scene graph of the first image, if it is frontal |

The CSV files may lie there unpacked. Reports: `source.reports` (folder or zip), else `mimic-cxr-reports.zip` in the
root, else the root. Studies come in the order of the split file. The three tables are read first and kept in short (the
names 2.0.0 are those of version 2.1.0 too); reports, scene graphs and whether an image exists are looked up a study at
a time.

Counted as skipped: images without a known view, studies without any other image, with `views="frontal"` those without
a frontal one, studies without a scene graph. Problems: a study in two splits or of two patients, an id that is no
number, a picture listed twice, listed in one table only, or not there (the study keeps its others), a report that is
missing or not UTF-8, labels that can't be read (the study goes without).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from rrg.data.formats import imagenome
from rrg.data.formats.mimic_reports import BadReportError, open_reports
from rrg.data.formats.mimic_sections import sections_of
from rrg.data.formats.mimic_tables import LABELS, Labels, Picture, pictures_by_study, read_labels
from rrg.data.formats.source import Source, UnsafePathError, safe_path
from rrg.data.study import Image, Report, Split, Study, View
from rrg.data.studyset import ProblemLog

_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "validate": "val", "test": "test"}


def read(source: Source, log: ProblemLog) -> Iterator[Study]:
    """The studies of the data set, one at a time; `UserError` where a table or the reports can't be used."""
    root = source.root
    split_csv, studies = pictures_by_study(root, log)
    labels = read_labels(root, log)
    with ExitStack() as stack:
        place, read_report = stack.enter_context(open_reports(source))
        graphs = stack.enter_context(imagenome.open_graphs(source.imagenome)) if source.imagenome else None
        for study_id in list(studies):
            pictures = studies.pop(study_id)  # what is done with makes room for what is yielded
            reason = _conflict(study_id, pictures)
            if reason:
                log.add(str(split_csv), f"study {study_id}", reason)
                continue
            images = _existing(root, study_id, _chosen(pictures, source.views, log), log)
            if not images:
                continue
            member = f"{_patient_folder(pictures[0].patient)}/s{study_id}.txt"
            try:
                report = sections_of(study_id, read_report(member))
            except BadReportError as error:
                log.add(f"{place}/{member}", f"study {study_id}: report", str(error))
                continue
            study = _study(study_id, images, report, labels.pop(study_id, None))
            yield study if graphs is None else _with_regions(study, images[0][0], graphs, log)


def view_of(position: str) -> View | None:
    """The view that a ViewPosition names, None for a missing or another one.

    PA and AP in any variant ("AP LLD", "PA RLD", "AP AXIAL") are frontal; LATERAL, LL, RL and "XTABLE LATERAL" are
    lateral. Oblique pictures (LAO, RAO, LPO), SWIMMERS and those without an entry (15,769 of 377,110) are neither.
    """
    words = position.upper().split()
    if words and words[0] in ("PA", "AP"):
        return "frontal"
    return "lateral" if {"LATERAL", "LL", "RL"} & set(words) else None


def _patient_folder(patient: str) -> str:
    return f"files/p{patient[:2]}/p{patient}"


def _conflict(study_id: str, pictures: list[Picture]) -> str | None:
    """Why the rows of a study can't be used, None if they can."""
    splits = sorted({picture.split for picture in pictures})
    patients = sorted({picture.patient for picture in pictures})
    if len(splits) > 1:
        return f"is in the splits {' and '.join(splits)}"
    if splits[0] not in _SPLITS:
        return f"split is {splits[0]!r}, expected {', '.join(_SPLITS)}"
    if len(patients) > 1:
        return f"is of the patients {' and '.join(patients)}"
    if not (study_id.isdecimal() and patients[0].isdecimal()):
        return f"study_id and subject_id must be numbers, not {study_id!r} and {patients[0]!r}"
    return None


def _chosen(pictures: list[Picture], views: str, log: ProblemLog) -> list[tuple[Picture, View]]:
    """The pictures with a known and wanted view, in order; a study that has none is counted as skipped."""
    known: list[tuple[Picture, View]] = []
    for picture in pictures:
        view = view_of(picture.position)
        if view is None:
            log.skip("image without a known ViewPosition")
        else:
            known.append((picture, view))
    if not known:
        log.skip("no image with a known ViewPosition")
        return []
    wanted = [item for item in known if views == "all" or item[1] == "frontal"]
    if not wanted:
        log.skip("no frontal image (data.views=frontal)")
    return sorted(wanted, key=lambda item: (item[1], not item[0].position.upper().startswith("PA"), item[0].dicom))


def _existing(
    root: Path, study_id: str, chosen: list[tuple[Picture, View]], log: ProblemLog
) -> list[tuple[Picture, Image]]:
    """The pictures whose file is there."""
    images: list[tuple[Picture, Image]] = []
    for picture, view in chosen:
        name = f"{_patient_folder(picture.patient)}/s{study_id}/{picture.dicom}.jpg"
        try:
            path = safe_path(root, name)
        except UnsafePathError as error:
            log.add(str(root), f"study {study_id}: image", str(error))
            continue
        if os.path.isfile(path):  # False for a name that is too long, too
            images.append((picture, Image(path, view)))
        else:
            log.add(str(path), f"study {study_id}: image", "is missing", missing_file=str(path))
    return images


def _study(study_id: str, images: list[tuple[Picture, Image]], report: Report, labels: Labels | None) -> Study:
    first = images[0][0]
    told = {name: value for name, value in zip(LABELS, labels or (), strict=False) if value is not None}
    return Study(
        id=study_id,
        split=_SPLITS[first.split],
        images=tuple(image for _, image in images),
        report=report,
        source="mimic_cxr",
        patient=first.patient,
        labels=None if labels is None else told,
    )


def _with_regions(study: Study, first: Picture, graphs: imagenome.Graphs, log: ProblemLog) -> Study:
    """The study with what Chest ImaGenome tells of its first image."""
    try:
        text = graphs(first.dicom)
        regions = None if text is None else imagenome.parse(text, first.size)
    except imagenome.SceneGraphError as error:
        log.add(imagenome.file_name(first.dicom), f"study {study.id}: scene graph", str(error))
        return study
    if regions is None:
        log.skip("no scene graph (study kept, without regions)")
        return study
    for _ in range(regions.faulty):
        log.skip("box of a scene graph without area in its image")
    return replace(
        study,
        boxes=regions.boxes,
        findings=regions.findings,
        region_findings=regions.by_region,
        region_sentences=regions.sentences,
    )
