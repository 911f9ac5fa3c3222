"""The tables of MIMIC-CXR-JPG: which pictures a study has, what is known of them, and the labels of its report.

Contract: a table that can't be used is a `UserError`, a row that can't is a problem. What is kept is small, since all
of it stays in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from sys import intern
from typing import Final, NamedTuple

from rrg.data.formats.source import open_csv
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError

LABELS: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
_LABEL_VALUES: Final[Mapping[str, float | None]] = {
    "": None,
    "1.0": 1.0,
    "0.0": 0.0,
    "-1.0": -1.0,
    "1": 1.0,
    "0": 0.0,
    "-1": -1.0,
}

Size = tuple[int, int]
Labels = tuple[float | None, ...]


class Picture(NamedTuple):
    """A row of the split file with what the metadata say of it; `size` is width and height, None if not told."""

    dicom: str
    patient: str
    split: str
    position: str
    size: Size | None


def _csv_name(table: str) -> str:
    return f"mimic-cxr-2.0.0-{table}.csv.gz"


def find_table(root: Path, table: str) -> Path | None:
    """The file of a table, packed or not; None where there is none."""
    packed = root / _csv_name(table)
    return next((path for path in (packed, packed.with_suffix("")) if path.is_file()), None)


def pictures_by_study(root: Path, log: ProblemLog) -> tuple[Path, dict[str, list[Picture]]]:
    """The split file, and its rows by study with their metadata."""
    split_csv = find_table(root, "split")
    if split_csv is None:
        raise UserError(f"{root / _csv_name('split')} is missing; data.root must be the folder of MIMIC-CXR-JPG")
    metadata_csv = find_table(root, "metadata") or root / _csv_name("metadata")
    metadata = _read_metadata(metadata_csv, log)
    study_of: dict[str, str] = {}
    studies: dict[str, list[Picture]] = {}
    for line, row in open_csv(split_csv, ("dicom_id", "study_id", "subject_id", "split")):
        dicom, study = row["dicom_id"], intern(row["study_id"])
        known = study_of.setdefault(dicom, study)
        # A second row that puts the picture into another split is kept: it makes the study a problem.
        rows = [old for old in studies.get(study, ()) if old.dicom == dicom]
        if known != study or any(old.split == row["split"] for old in rows):
            log.add(f"{split_csv}:{line}", "dicom_id", f"{dicom} occurs twice; the first is kept")
            continue
        if dicom not in metadata:
            log.add(f"{split_csv}:{line}", "dicom_id", f"{dicom} is not in {metadata_csv.name}")
            continue
        position, size = metadata[dicom]
        picture = Picture(dicom, intern(row["subject_id"]), intern(row["split"]), position, size)
        studies.setdefault(study, []).append(picture)
    for dicom in sorted(metadata.keys() - study_of.keys()):
        log.add(str(metadata_csv), "dicom_id", f"{dicom} is not in {split_csv.name}")
    return split_csv, studies


def _read_metadata(path: Path, log: ProblemLog) -> dict[str, tuple[str, Size | None]]:
    """View position and size by dicom id."""
    sizes: dict[tuple[str, str], Size | None] = {}
    found: dict[str, tuple[str, Size | None]] = {}
    for line, row in open_csv(path, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        if row["dicom_id"] in found:
            log.add(f"{path}:{line}", "dicom_id", f"{row['dicom_id']} occurs twice; the first is kept")
            continue
        columns, rows = row.get("Columns", ""), row.get("Rows", "")
        known = columns.isdecimal() and rows.isdecimal() and int(columns) > 0 and int(rows) > 0
        size = sizes.setdefault((columns, rows), (int(columns), int(rows)) if known else None)
        found[row["dicom_id"]] = (intern(row["ViewPosition"].strip()), size)
    return found


def read_labels(root: Path, log: ProblemLog) -> dict[str, Labels]:
    """The labels of each study in the order of `LABELS`, None for blank; of CheXpert's labeller, else of NegBio's."""
    path = find_table(root, "chexpert") or find_table(root, "negbio")
    labels: dict[str, Labels] = {}
    if path is None:
        return labels
    for line, row in open_csv(path, ("subject_id", "study_id", *LABELS)):
        cells = [row[name].strip() for name in LABELS]
        bad = next((name for name, cell in zip(LABELS, cells, strict=True) if cell not in _LABEL_VALUES), None)
        if bad is not None:
            log.add(f"{path}:{line}", bad, f"{row[bad]!r} is none of 1.0, 0.0, -1.0 and blank; labels left out")
        elif row["study_id"] in labels:
            log.add(f"{path}:{line}", "study_id", f"{row['study_id']} occurs twice; the first is kept")
        else:
            labels[row["study_id"]] = tuple(_LABEL_VALUES[cell] for cell in cells)
    return labels
