"""The Kaggle pair of tables: the same studies as Open-i's XML, with views."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrg.data.formats import kaggle, openi
from rrg.data.formats.source import Source
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError
from tests.data.formats.iu_fixture import REPORTS_HEADER, kaggle_root, openi_root, write_csv


def test_a_study_has_r2gens_id_split_views_and_verbatim_text(tmp_path: Path) -> None:
    study, other = kaggle.read(Source(kaggle_root(tmp_path)), ProblemLog(strict=True))
    assert (study.id, study.split, study.patient) == ("CXR2384_IM-0942", "train", "CXR2384")
    assert study.report.findings == "Heart is large,\nlungs clear."
    assert [(image.path.name, image.view) for image in study.images] == [
        ("2384_IM-0942-1001.dcm.png", "frontal"),
        ("2384_IM-0942-3001.dcm.png", "lateral"),
    ]
    assert study.findings == frozenset({"cardiomegaly", "degenerative_spine"})
    assert (other.id, other.split, other.findings) == ("CXR7777", "train", frozenset())
    assert other.report.findings == ""


def test_ids_and_splits_agree_with_the_xml_reader(tmp_path: Path) -> None:
    by_xml = openi.read(Source(openi_root(tmp_path / "xml")), ProblemLog())
    by_csv = kaggle.read(Source(kaggle_root(tmp_path)), ProblemLog())
    assert [(s.id, s.split, s.patient) for s in by_xml] == [(s.id, s.split, s.patient) for s in by_csv]


@pytest.mark.parametrize("images", [".", "images"])
def test_images_may_lie_in_other_folders(tmp_path: Path, images: str) -> None:
    assert len(list(kaggle.read(Source(kaggle_root(tmp_path, images)), ProblemLog(strict=True)))) == 2


def test_bad_rows_are_listed_with_line_field_and_reason(tmp_path: Path) -> None:
    root = kaggle_root(tmp_path)
    report = ("normal", "normal", "", "", "", "Text.", "")
    write_csv(root / "indiana_reports.csv", REPORTS_HEADER, [(uid, *report) for uid in ("x", "5", "7777", "9", "10")])
    write_csv(
        root / "indiana_projections.csv",
        ("uid", "filename", "projection"),
        [("7777", "gone.png", "Frontal"), ("9", "../secret.png", "Frontal"), ("10", "a.png", "Oblique")],
    )
    log = ProblemLog()
    assert list(kaggle.read(Source(root), log)) == []
    problems = [f"{Path(problem.file).name} {problem.field} {problem.reason}" for problem in log.problems]
    assert problems[0] == "indiana_projections.csv:4 projection 'Oblique' is neither Frontal nor Lateral"
    assert problems[1] == "indiana_reports.csv:2 uid 'x' is not a number"
    assert problems[2] == "indiana_reports.csv:3 uid 5 has no image in indiana_projections.csv"
    assert "filename gone.png is missing" in problems[3]
    assert "points outside of" in problems[4]
    assert "uid 10 has no image" in problems[5]


def test_a_wrong_header_a_missing_table_and_another_encoding_are_refused(tmp_path: Path) -> None:
    root = kaggle_root(tmp_path)
    (root / "indiana_reports.csv").write_text("uid,findings\n1,Text.\n")
    with pytest.raises(UserError, match=r"indiana_reports\.csv: the header lacks MeSH, impression"):
        list(kaggle.read(Source(root), ProblemLog()))
    (root / "indiana_reports.csv").write_bytes(",".join(REPORTS_HEADER).encode() + b"\n1,,,,,,caf\xe9,\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        list(kaggle.read(Source(root), ProblemLog()))
    (root / "indiana_projections.csv").unlink()
    with pytest.raises(UserError, match=r"indiana_projections\.csv is missing"):
        list(kaggle.read(Source(root), ProblemLog()))
