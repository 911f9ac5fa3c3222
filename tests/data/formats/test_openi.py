"""Open-i's XML: text verbatim, R2Gen's split, images, all 3,955 official reports, R2Gen's annotation rebuilt."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rrg.data.convert import convert
from rrg.data.formats import openi
from rrg.data.formats.source import Source
from rrg.data.study import Image
from rrg.data.studyset import SPLITS, ProblemLog
from rrg.errors import UserError
from tests.data.formats.iu_fixture import openi_root, xml

DATA = os.environ.get("LMRRG_TEST_DATA")
real_files = pytest.mark.skipif(DATA is None, reason="LMRRG_TEST_DATA does not name the folder of real X-rays")


def test_a_study_has_r2gens_id_and_split_and_the_sections_verbatim(tmp_path: Path) -> None:
    log = ProblemLog()
    study, other = openi.read(Source(openi_root(tmp_path)), log)
    assert (study.id, study.split, study.patient) == ("CXR2384_IM-0942", "train", "CXR2384")
    assert study.report.findings == "Heart is large."
    assert study.report.impression == "1. Big heart."
    assert (study.report.indication, study.report.comparison) == ("Cough & fever", "None.")
    assert [(image.path.name, image.view) for image in study.images] == [
        ("CXR2384_IM-0942-1001.png", "frontal"),
        ("CXR2384_IM-0942-3001.png", "lateral"),
    ]
    assert study.findings == frozenset({"cardiomegaly"})
    assert (other.id, other.split) == ("CXR7777", "train")
    assert not log.problems


def test_a_report_that_nobody_coded_has_unknown_findings(tmp_path: Path) -> None:
    _, other = openi.read(Source(openi_root(tmp_path)), ProblemLog())
    assert other.findings is None
    assert other.region_findings is None


def test_a_report_without_images_is_counted_as_skipped(tmp_path: Path) -> None:
    log = ProblemLog()
    assert len(list(openi.read(Source(openi_root(tmp_path)), log))) == 2
    assert log.skipped == {"Open-i has no image of it": 1}


@pytest.mark.parametrize("images", [".", "images"])
def test_images_may_lie_in_other_folders(tmp_path: Path, images: str) -> None:
    log = ProblemLog()
    assert len(list(openi.read(Source(openi_root(tmp_path, images)), log))) == 2
    assert not log.problems


def test_the_archive_is_read_like_the_folder(tmp_path: Path) -> None:
    root = openi_root(tmp_path)
    expected = list(openi.read(Source(root), ProblemLog()))
    with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as tar:
        tar.add(root / "ecgen-radiology", "ecgen-radiology")
    for path in (root / "ecgen-radiology").iterdir():
        path.unlink()
    (root / "ecgen-radiology").rmdir()
    found = list(openi.read(Source(root), ProblemLog()))
    assert sorted(found, key=lambda study: study.id) == sorted(expected, key=lambda study: study.id)


def test_text_after_a_nested_tag_is_kept() -> None:
    record = openi.parse_record(xml(5, findings=" Heart is <b>very</b> large. "))
    assert record.sections["findings"] == "Heart is very large."


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    root = openi_root(tmp_path)
    (root / "NLMCXR_png" / "CXR2384_IM-0942-3001.png").unlink()
    log = ProblemLog()
    assert [study.id for study in openi.read(Source(root), log)] == ["CXR7777"]
    assert "CXR2384_IM-0942-3001 is missing" in str(log.problems[0])
    assert "2384.xml: parentImage" in str(log.problems[0])


def test_an_image_id_that_climbs_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = openi_root(tmp_path)
    (root / "ecgen-radiology" / "9.xml").write_bytes(xml(9, images=("../../secret",)))
    log = ProblemLog()
    assert len(list(openi.read(Source(root), log))) == 2
    assert "points outside of" in str(log.problems[0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<eCitation>", "well-formed"),
        (b"<eCitation/>", "uId"),
        (b'<?xml version="1.0" encoding="utf-8"?><eCitation>\xff</eCitation>', "well-formed"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><eCitation>&b;</eCitation>', "well-formed"),
    ],
)
def test_a_broken_xml_file_is_listed_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    root = openi_root(tmp_path)
    (root / "ecgen-radiology" / "1.xml").write_bytes(content)
    log = ProblemLog()
    assert len(list(openi.read(Source(root), log))) == 2
    assert reason in log.problems[0].reason
    assert log.problems[0].file.endswith("1.xml")


def test_a_truncated_archive_and_a_wrong_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither ecgen-radiology/ nor NLMCXR_reports"):
        list(openi.read(Source(tmp_path), ProblemLog()))
    (tmp_path / "NLMCXR_reports.tgz").write_bytes(openi.find_archive().read_bytes()[:100_000])
    with pytest.raises(UserError, match="truncated"):
        list(openi.read_reports(tmp_path / "NLMCXR_reports.tgz", ProblemLog()))


@pytest.fixture(scope="module")
def official() -> dict[int, openi.OpeniRecord]:
    log = ProblemLog()
    records = openi.read_records(openi.find_archive(), log)
    assert not log.problems
    return records


def test_all_official_reports_are_read(official: dict[int, openi.OpeniRecord]) -> None:
    assert len(official) == 3955
    assert sum(bool(record.sections["findings"]) for record in official.values()) == 3425
    assert sum(bool(record.sections["impression"]) for record in official.values()) == 3921
    assert sum(len(record.images) for record in official.values()) == 7470


def findings_by_elementtree(xml_text: bytes) -> str:
    """FINDINGS without any of our code."""
    root = ElementTree.parse(io.BytesIO(xml_text)).getroot()
    return "".join("".join(e.itertext()) for e in root.iter("AbstractText") if e.get("Label") == "FINDINGS").strip()


def rebuild(records: dict[int, openi.OpeniRecord], out: Path) -> dict[str, str]:
    """Report by study id in the annotation.json that is made from the XML of R2Gen's studies."""
    placed = openi.placements()
    images = (Image(Path("0.png"), "frontal"),)
    studies = (openi.study_of(records[number], images, placed) for number in placed)
    assert convert(studies, "r2gen", out, "none") == 2955
    annotation = json.loads((out / "annotation.json").read_text(encoding="utf-8"))
    assert [len(annotation[split]) for split in SPLITS] == [2069, 296, 590]
    return {record["id"]: record["report"] for split in SPLITS for record in annotation[split]}


def test_the_annotation_rebuilt_from_xml_has_every_report_verbatim(
    official: dict[int, openi.OpeniRecord], tmp_path: Path
) -> None:
    reports = rebuild(official, tmp_path / "iu_xray")
    by_number = {int(study_id.removeprefix("CXR").split("_")[0]): report for study_id, report in reports.items()}
    with tarfile.open(openi.find_archive()) as tar:
        for member in tar:
            stem = Path(member.name).stem
            stream = tar.extractfile(member) if stem.isdigit() else None
            if stream is not None and int(stem) in by_number:
                report = by_number.pop(int(stem))
                assert report
                assert report == findings_by_elementtree(stream.read()), stem
    assert not by_number


@real_files
def test_the_rebuilt_annotation_has_the_official_ids_and_reports(
    official: dict[int, openi.OpeniRecord], tmp_path: Path
) -> None:
    folder = Path(str(DATA)) / "iu_xray"
    reports = rebuild(official, tmp_path / "iu_xray")
    ids = json.loads((folder / "r2gen_split_ids.json").read_text(encoding="utf-8"))
    assert list(reports) == [study_id for split in SPLITS for study_id in ids[split]]
    annotation = json.loads((folder / "r2gen_mini" / "annotation.json").read_text(encoding="utf-8"))
    records = [record for split in SPLITS for record in annotation[split]]
    assert len(records) == 3
    for record in records:
        assert official[record["uid"]].sections["findings"] == record["report"]
    known = [record for record in records if record["id"] in reports]
    assert len(known) == 2  # report 303 is not in R2Gen's split
    for record in known:
        assert reports[record["id"]] == record["report"]


@real_files
def test_the_real_xml_files_with_their_real_images_are_read(tmp_path: Path) -> None:
    folder = Path(str(DATA)) / "iu_xray"
    annotation = json.loads((folder / "r2gen_mini" / "annotation.json").read_text(encoding="utf-8"))
    (tmp_path / "ecgen-radiology").symlink_to((folder / "ecgen-radiology").resolve())
    records = {f"CXR{record['uid']}": record for split in SPLITS for record in annotation[split]}
    for record in records.values():
        for name, original in zip(record["image_path"], record["original_files"], strict=True):
            (tmp_path / original).symlink_to((folder / "r2gen_mini" / "images" / name).resolve())
    log = ProblemLog()
    studies = list(openi.read(Source(tmp_path), log))
    assert [study.id for study in studies] == ["CXR54_IM-2145", "CXR303"]
    assert "CXR25_IM-1024-3001 is missing" in str(log.problems[0])  # R2Gen left it out, so the shared folder lacks it
    for study in studies:
        assert study.report.findings == records[str(study.patient)]["report"]
