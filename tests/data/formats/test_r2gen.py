"""R2Gen's annotation.json: the IU and the MIMIC flavour, verbatim text, and each bad record with its message."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rrg.data.formats import r2gen
from rrg.data.formats.source import Source
from rrg.data.study import Study
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError
from tests.data.formats.iu_fixture import picture

DATA = os.environ.get("LMRRG_TEST_DATA")
IU: dict[str, Any] = {
    "id": "CXR2384_IM-0942",
    "report": " Heart is large. XXXX,  lungs clear. ",
    "image_path": ["CXR2384_IM-0942/0.png", "CXR2384_IM-0942/1.png"],
    "split": "train",
}
MIMIC: dict[str, Any] = {
    "id": "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014",
    "study_id": 50414267,
    "subject_id": 10000032,
    "report": "FINAL REPORT\n  No effusion.",
    "image_path": ["p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg"],
    "split": "test",
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an annotation.json with these records, the pictures of IU and MIMIC under images/."""

    def make(**splits: list[Any]) -> Path:
        for name in (*IU["image_path"], *MIMIC["image_path"]):
            picture(tmp_path / "images" / str(name), (400, 200))
        content = {"train": [], "val": [], "test": []} | splits
        (tmp_path / "annotation.json").write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return make


def read(root: Path, log: ProblemLog | None = None) -> list[Study]:
    return list(r2gen.read(Source(root), log or ProblemLog(strict=True)))


def test_the_iu_flavour(write: Write) -> None:
    (study,) = read(write(train=[IU]))
    assert (study.id, study.split, study.patient) == ("CXR2384_IM-0942", "train", "CXR2384")
    assert study.report.findings == "Heart is large. XXXX,  lungs clear."
    assert [(image.path.name, image.view) for image in study.images] == [("0.png", "frontal"), ("1.png", "lateral")]
    assert (study.findings, study.region_findings, study.boxes) == (None, None, None)


def test_the_mimic_flavour(write: Write) -> None:
    (study,) = read(write(test=[MIMIC]))
    assert (study.id, study.split, study.patient) == (MIMIC["id"], "test", "10000032")
    assert study.report.findings == "FINAL REPORT\n  No effusion."
    assert [image.view for image in study.images] == ["frontal"]


def test_views_are_taken_from_the_record_and_the_frontal_image_comes_first(write: Write) -> None:
    (study,) = read(write(train=[IU | {"view": ["LL", "AP Supine"]}]))
    assert [(image.path.name, image.view) for image in study.images] == [("1.png", "frontal"), ("0.png", "lateral")]


def test_boxes_become_fractions_of_the_padded_square(write: Write) -> None:
    (study,) = read(write(train=[IU | {"boxes_xyxy": {"left_lung": [200, 0, 400, 200], "elsewhere": [1]}}]))
    assert study.boxes is not None
    box = study.boxes["left lung"]
    assert (box.x0, box.y0, box.x1, box.y1) == (0.5, 0.25, 1.0, 0.75)


def test_studies_are_made_one_at_a_time(write: Write) -> None:
    studies = r2gen.read(Source(write(train=[IU, IU | {"id": ""}])), ProblemLog(strict=True))
    assert next(studies).id == IU["id"]
    with pytest.raises(UserError, match="id: missing"):
        next(studies)


@pytest.mark.parametrize(
    ("bad", "field", "reason"),
    [
        ("text", "-", "not an object"),
        (IU | {"id": None}, "id", "missing"),
        (IU | {"report": None}, "report", "missing or empty"),
        (IU | {"report": "  "}, "report", "missing or empty"),
        (IU | {"image_path": []}, "image_path", "is missing"),
        (IU | {"image_path": "gone.png"}, "image_path", "gone.png is missing"),
        (IU | {"image_path": ["../../etc/passwd"]}, "image_path", "points outside of"),
        (IU | {"image_path": ["/etc/passwd"]}, "image_path", "points outside of"),
        (IU | {"boxes_xyxy": {"left_lung": [5, 5, 5, 9]}}, "boxes_xyxy.left_lung", "empty or outside of the 400x200"),
        (IU | {"boxes_xyxy": {"left_lung": [5, float("nan"), 9, 9]}}, "boxes_xyxy.left_lung", "empty or outside"),
        (IU | {"boxes_xyxy": {"left_lung": "abc"}}, "boxes_xyxy.left_lung", "not four numbers"),
    ],
)
def test_a_bad_record_is_listed_with_file_field_and_reason(write: Write, bad: Any, field: str, reason: str) -> None:
    log = ProblemLog()
    assert read(write(val=[MIMIC, bad]), log)[0].id == MIMIC["id"]
    (problem,) = log.problems
    assert "annotation.json[val][1]" in problem.file
    assert problem.field == field
    assert reason in problem.reason


def test_boxes_of_a_corrupt_image_are_left_out(write: Write) -> None:
    root = write(train=[IU | {"boxes_xyxy": {"left_lung": [0, 0, 9, 9]}}])
    (root / "images" / IU["image_path"][0]).write_bytes(b"\x89PNG no picture")
    log = ProblemLog()
    (study,) = read(root, log)
    assert study.boxes is None
    assert "0.png" in log.problems[0].reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"train": []}', 'must be an object with the lists "train", "val" and "test"'),
        (b"[1, 2", "is not JSON"),
        ('{"train": ["é"], "val": [], "test": []}'.encode("latin-1"), "is not UTF-8"),
    ],
)
def test_a_useless_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "annotation.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_a_folder_without_annotation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"annotation\.json is missing"):
        read(tmp_path)


@pytest.mark.skipif(DATA is None, reason="LMRRG_TEST_DATA does not name the folder of real X-rays")
@pytest.mark.parametrize(("folder", "splits"), [("cxr_notes", [313, 29, 20]), ("iu_xray/r2gen_mini", [1, 1, 1])])
def test_the_real_sets_are_read_verbatim(folder: str, splits: list[int]) -> None:
    root = Path(str(DATA)) / folder
    studies = read(root)
    assert [sum(study.split == name for study in studies) for name in ("train", "val", "test")] == splits
    content = json.loads((root / "annotation.json").read_text(encoding="utf-8"))
    reports = {record["id"]: record["report"] for records in content.values() for record in records}
    assert {study.id: study.report.findings for study in studies} == {name: t.strip() for name, t in reports.items()}
    assert all(study.patient for study in studies)
