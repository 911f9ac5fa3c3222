"""Writes a tiny MIMIC-CXR-JPG 2.x with Chest ImaGenome in the official layout; all text is invented."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

Corners = tuple[int, int, int, int]

# The official headers, column for column.
SPLIT_HEADER = ("dicom_id", "study_id", "subject_id", "split")
METADATA_HEADER = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
LABEL_HEADER = (
    "subject_id",
    "study_id",
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

# The blank lines of MIMIC-CXR reports hold one space.
REPORT = (
    "                                 FINAL REPORT\n"
    " EXAMINATION:  CHEST (PA AND LAT)\n \n"
    " INDICATION:  ___ year old with cough  // infiltrate?\n \n"
    " COMPARISON:  ___\n \n"
    " FINDINGS: \n \n The lungs are clear.  Heart size is\n normal.\n \n"
    " IMPRESSION: \n \n No acute process.\n"
)


@dataclass
class Mimic:
    """A data set to be written; `labels` by study, `reports` by study (bytes are written as they are)."""

    root: Path
    pictures: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    reports: dict[tuple[str, str], str | bytes] = field(default_factory=dict)
    labels: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    def study(
        self, patient: str, study: str, split: str, views: Mapping[str, str], report: str | bytes | None = REPORT
    ) -> None:
        """Adds a study with a picture for each (dicom id, view position) and its file, and a report if there is one."""
        for dicom, position in views.items():
            self.pictures.append((dicom, study, patient, split, position))
            path = self.root / folder(patient) / f"s{study}" / f"{dicom}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            PILImage.new("L", (16, 20)).save(path)
        if report is not None:
            self.reports[patient, study] = report

    def write_tables(self, packed: bool = True) -> None:
        split = [(dicom, study, patient, split) for dicom, study, patient, split, _ in self.pictures]
        metadata = [
            (dicom, patient, study, "CHEST", view, "3056", "2544", "21800506", "213014.531", "CHEST", "", "Erect")
            for dicom, study, patient, _, view in self.pictures
        ]
        self.write_csv("split", SPLIT_HEADER, split, packed)
        self.write_csv("metadata", METADATA_HEADER, metadata, packed)
        rows = [(*key, *(cells.get(name, "") for name in LABEL_HEADER[2:])) for key, cells in self.labels.items()]
        if rows:
            self.write_csv("chexpert", LABEL_HEADER, rows, packed)

    def write_csv(self, table: str, header: Sequence[str], rows: Iterable[Sequence[str]], packed: bool = True) -> Path:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([header, *rows])
        content = text.getvalue().encode()
        path = self.root / f"mimic-cxr-2.0.0-{table}.csv{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
        return path

    def write_reports_zip(self, path: Path | None = None) -> Path:
        path = path or self.root / "mimic-cxr-reports.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("files/", "")
            for (patient, study), text in self.reports.items():
                archive.writestr(f"{folder(patient)}/s{study}.txt", text)
        return path

    def write_reports_folder(self, root: Path | None = None) -> Path:
        root = root or self.root
        for (patient, study), text in self.reports.items():
            path = root / folder(patient) / f"s{study}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return root


def folder(patient: str) -> str:
    return f"files/p{patient[:2]}/p{patient}"


def box(dicom: str, region: str, original: Corners, copy: Corners) -> dict[str, Any]:
    """An entry of `objects`: `original` in pixels of the image, `copy` in pixels of the 224 x 224 one."""
    corners = ("x1", "y1", "x2", "y2")
    return {
        "object_id": f"{dicom}_{region}",
        **dict(zip(corners, copy, strict=True)),
        "width": copy[2] - copy[0],
        "height": copy[3] - copy[1],
        "bbox_name": region,
        "synsets": ["C0000000"],
        "name": region.title(),
        **{f"original_{name}": value for name, value in zip(corners, original, strict=True)},
        "original_width": original[2] - original[0],
        "original_height": original[3] - original[1],
    }


def attribute(dicom: str, region: str, sentences: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """An entry of `attributes`: sentence -> its labels ("anatomicalfinding|yes|lung opacity")."""
    count = len(sentences)
    return {
        region: True,
        "bbox_name": region,
        "synsets": ["C0000000"],
        "name": region.title(),
        "attributes": [list(labels) for labels in sentences.values()],
        "attributes_ids": [["C0000000"] * len(labels) for labels in sentences.values()],
        "phrases": list(sentences),
        "phrase_IDs": [f"50414267|{i}" for i in range(count)],
        "sections": ["finalreport"] * count,
        "comparison_cues": [[]] * count,
        "temporal_cues": [[]] * count,
        "severity_cues": [[]] * count,
        "texture_cues": [[]] * count,
        "object_id": f"{dicom}_{region}",
    }


def scene_graph(dicom: str, objects: Sequence[dict[str, Any]], attributes: Sequence[dict[str, Any]]) -> str:
    return json.dumps(
        {
            "image_id": dicom,
            "viewpoint": "PA",
            "patient_id": 10000032,
            "study_id": 50414267,
            "gender": "F",
            "age_decile": "50-60",
            "reason_for_exam": "___ year old with cough",
            "StudyOrder": 1,
            "StudyDateTime": "2180-05-06 21:30:14 UTC",
            "objects": list(objects),
            "attributes": list(attributes),
            "relationships": [],
        }
    )


def write_graphs(root: Path, graphs: Mapping[str, str], packed: bool) -> None:
    """`silver_dataset/scene_graph` as a folder, or as the zip that PhysioNet has."""
    place = root / "silver_dataset"
    place.mkdir(parents=True)
    if packed:
        with zipfile.ZipFile(place / "scene_graph.zip", "w") as archive:
            for dicom, text in graphs.items():
                archive.writestr(f"scene_graph/{dicom}_SceneGraph.json", text)
        return
    (place / "scene_graph").mkdir()
    for dicom, text in graphs.items():
        (place / "scene_graph" / f"{dicom}_SceneGraph.json").write_text(text)
