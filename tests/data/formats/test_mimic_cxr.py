"""MIMIC-CXR-JPG in its official layout: what is read, what is a problem, what stops the run."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest

from rrg.data.formats import mimic_cxr
from rrg.data.formats.mimic_cxr import view_of
from rrg.data.formats.source import Source
from rrg.data.study import Image, Study
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError
from tests.data.formats.mimic_fixture import METADATA_HEADER, REPORT, SPLIT_HEADER, Mimic, folder


@pytest.fixture
def mimic(tmp_path: Path) -> Mimic:
    """One study with a PA, an AP and a lateral picture."""
    data = Mimic(tmp_path / "mimic")
    data.study("10000032", "50414267", "train", {"d3": "LATERAL", "d2": "PA", "d1": "AP"})
    data.labels["10000032", "50414267"] = {"Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"}
    return data


def read(data: Mimic, **options: object) -> tuple[list[Study], ProblemLog]:
    log = ProblemLog()
    return list(mimic_cxr.read(Source(data.root, **options), log)), log  # type: ignore[arg-type]


def written(data: Mimic) -> Mimic:
    data.write_tables()
    data.write_reports_zip()
    return data


def test_a_study_has_its_ids_split_report_pictures_and_labels(mimic: Mimic) -> None:
    (study,), log = read(written(mimic))
    pictures = mimic.root / "files/p10/p10000032/s50414267"
    assert (study.id, study.patient, study.split, study.source) == ("50414267", "10000032", "train", "mimic_cxr")
    assert study.images == (
        Image(pictures / "d2.jpg", "frontal"),
        Image(pictures / "d1.jpg", "frontal"),
        Image(pictures / "d3.jpg", "lateral"),
    )
    assert study.report.findings == "The lungs are clear.  Heart size is\n normal."
    assert study.report.impression == "No acute process."
    assert study.labels == {"Edema": 1.0, "Pneumonia": -1.0, "Fracture": 0.0}
    assert (study.findings, study.region_findings, study.boxes) == (None, None, None)
    assert not log.problems
    assert not log.skipped


def test_validate_is_val_and_studies_keep_the_order_of_the_split_file(mimic: Mimic) -> None:
    mimic.study("10000764", "57375967", "validate", {"e1": "AP"})
    mimic.study("10000032", "50000001", "test", {"e2": "AP"})
    studies, _ = read(written(mimic))
    assert [(s.id, s.split) for s in studies] == [("50414267", "train"), ("57375967", "val"), ("50000001", "test")]


@pytest.mark.parametrize("place", ["root zip", "zip", "folder", "folder with the zip", "root"])
def test_reports_may_be_a_zip_or_a_folder(mimic: Mimic, tmp_path: Path, place: str) -> None:
    mimic.write_tables()
    apart = tmp_path / "reports"
    apart.mkdir()
    if "zip" in place:
        packed = mimic.write_reports_zip(None if place == "root zip" else apart / "mimic-cxr-reports.zip")
        reports = {"root zip": None, "zip": packed}.get(place, apart)
    else:
        mimic.write_reports_folder(None if place == "root" else apart)
        reports = None if place == "root" else apart
    (study,), log = read(mimic, reports=reports)
    assert study.report.impression == "No acute process."
    assert not log.problems


def test_tables_may_be_unpacked(mimic: Mimic) -> None:
    mimic.write_tables(packed=False)
    mimic.write_reports_zip()
    (study,), _ = read(mimic)
    assert study.labels


def test_without_the_label_tables_labels_are_unknown(mimic: Mimic) -> None:
    mimic.labels.clear()
    (study,), _ = read(written(mimic))
    assert study.labels is None


def test_negbio_labels_are_used_where_there_are_no_chexpert_ones(mimic: Mimic) -> None:
    written(mimic)
    chexpert = mimic.root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    chexpert.rename(mimic.root / "mimic-cxr-2.0.0-negbio.csv.gz")
    (study,), _ = read(mimic)
    assert study.labels == {"Edema": 1.0, "Pneumonia": -1.0, "Fracture": 0.0}


@pytest.mark.parametrize(
    ("position", "view"),
    [
        ("PA", "frontal"),
        ("AP", "frontal"),
        ("AP LLD", "frontal"),
        ("LATERAL", "lateral"),
        ("LL", "lateral"),
        ("XTABLE LATERAL", "lateral"),
        ("", None),
        ("LAO", None),
        ("SWIMMERS", None),
    ],
)
def test_view_positions_are_frontal_lateral_or_neither(position: str, view: str | None) -> None:
    assert view_of(position) == view


def test_frontal_views_only_drops_laterals_and_counts_studies_without_a_frontal(mimic: Mimic) -> None:
    mimic.study("10000764", "57375967", "train", {"e1": "LL"})
    (study,), log = read(written(mimic), views="frontal")
    assert [image.view for image in study.images] == ["frontal", "frontal"]
    assert log.skipped == {"no frontal image (data.views=frontal)": 1}


def test_pictures_of_an_unknown_view_are_counted(mimic: Mimic) -> None:
    mimic.study("10000032", "50000001", "train", {"e1": "AP", "e2": ""})
    mimic.study("10000032", "50000002", "train", {"e3": "LAO"})
    studies, log = read(written(mimic))
    assert [len(study.images) for study in studies] == [3, 1]
    assert log.skipped == {"image without a known ViewPosition": 2, "no image with a known ViewPosition": 1}


def test_an_empty_findings_section_is_still_a_study(mimic: Mimic) -> None:
    mimic.study("10000032", "50000001", "train", {"e1": "AP"}, "\n IMPRESSION: Normal.\n")
    studies, log = read(written(mimic))
    assert studies[1].report.findings == ""
    assert not log.problems


def test_a_missing_report_is_a_problem_of_its_study(mimic: Mimic) -> None:
    mimic.study("10000032", "50000001", "train", {"e1": "AP"}, report=None)
    studies, log = read(written(mimic))
    assert len(studies) == 1
    file = mimic.root / "mimic-cxr-reports.zip/files/p10/p10000032/s50000001.txt"
    assert [str(problem) for problem in log.problems] == [f"{file}: study 50000001: report: is missing"]


@pytest.mark.parametrize("packed", [True, False])
def test_a_report_that_is_not_utf8_is_a_problem_of_its_study(mimic: Mimic, packed: bool) -> None:
    mimic.study("10000032", "50000001", "train", {"e1": "AP"}, REPORT.encode() + b"caf\xe9 ")
    mimic.write_tables()
    if packed:
        mimic.write_reports_zip()
    else:
        mimic.write_reports_folder()
    studies, log = read(mimic)
    assert [study.id for study in studies] == ["50414267"]
    (problem,) = log.problems
    assert problem.file.endswith("s50000001.txt")
    assert "is not UTF-8" in problem.reason


def test_a_damaged_report_in_the_zip_is_a_problem_of_its_study(mimic: Mimic) -> None:
    path = written(mimic).root / "mimic-cxr-reports.zip"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{folder('10000032')}/s50414267.txt")
    at = info.header_offset + 30 + len(info.filename)
    content[at : at + 20] = b"\xff" * 20
    path.write_bytes(bytes(content))
    studies, log = read(mimic)
    assert not studies
    assert "is damaged" in log.problems[0].reason


def test_a_missing_picture_is_a_problem_and_the_study_keeps_its_others(mimic: Mimic) -> None:
    path = written(mimic).root / "files/p10/p10000032/s50414267/d2.jpg"
    path.unlink()
    (study,), log = read(mimic)
    assert [image.path.name for image in study.images] == ["d1.jpg", "d3.jpg"]
    assert [str(problem) for problem in log.problems] == [f"{path}: study 50414267: image: is missing"]


def test_a_study_in_two_splits_is_left_out(mimic: Mimic) -> None:
    mimic.study("10000032", "50414267", "test", {"d4": "PA"})
    studies, log = read(written(mimic))
    assert not studies
    assert "study 50414267: is in the splits test and train" in str(log.problems[0])


def test_a_picture_in_two_splits_makes_its_study_a_problem(mimic: Mimic) -> None:
    mimic.write_tables()
    mimic.write_reports_zip()
    row = ("50414267", "10000032")
    mimic.write_csv("split", SPLIT_HEADER, [(d, *row, "train") for d in ("d1", "d2", "d3")] + [("d1", *row, "test")])
    studies, log = read(mimic)
    assert not studies
    assert [problem.reason for problem in log.problems] == ["is in the splits test and train"]


def test_a_picture_listed_twice_counts_once(mimic: Mimic) -> None:
    mimic.pictures.append(mimic.pictures[0])
    (study,), log = read(written(mimic))
    assert len(study.images) == 3
    assert {problem.reason for problem in log.problems} == {"d3 occurs twice; the first is kept"}


def test_a_study_of_two_patients_is_left_out(mimic: Mimic) -> None:
    mimic.study("10000764", "50414267", "train", {"d4": "PA"})
    studies, log = read(written(mimic))
    assert not studies
    assert log.problems[0].reason == "is of the patients 10000032 and 10000764"


def test_a_picture_in_one_table_only_is_a_problem(mimic: Mimic) -> None:
    written(mimic)
    row = ("50414267", "10000032", "train")
    mimic.write_csv("split", SPLIT_HEADER, [("d1", *row), ("d9", *row)])
    (study,), log = read(mimic)
    assert len(study.images) == 1
    reasons = [problem.reason for problem in log.problems]
    assert "d9 is not in mimic-cxr-2.0.0-metadata.csv.gz" in reasons
    assert "d2 is not in mimic-cxr-2.0.0-split.csv.gz" in reasons


def test_a_label_that_is_no_label_leaves_the_study_without(mimic: Mimic) -> None:
    mimic.labels["10000032", "50414267"] = {"Edema": "maybe"}
    (study,), log = read(written(mimic))
    assert study.labels is None
    assert (log.problems[0].field, log.problems[0].reason) == (
        "Edema",
        "'maybe' is none of 1.0, 0.0, -1.0 and blank; labels left out",
    )


def test_ids_never_lead_out_of_the_data_set(mimic: Mimic) -> None:
    mimic.study("10000032", "50000001", "train", {"e1": "AP"})
    written(mimic)
    rows = [("../../../../x", "50414267", "10000032", "train"), ("e1", "../50000001", "10000032", "train")]
    mimic.write_csv("split", SPLIT_HEADER, rows)
    mimic.write_csv("metadata", METADATA_HEADER, [(d, p, s, "", "PA", "1", "1") for d, s, p, _ in rows])
    studies, log = read(mimic)
    assert not studies
    reasons = [problem.reason for problem in log.problems]
    assert "points outside of" in reasons[0]
    assert reasons[1] == "study_id and subject_id must be numbers, not '../50000001' and '10000032'"


def test_an_unknown_split_is_a_problem(mimic: Mimic) -> None:
    mimic.study("10000032", "50000001", "dev", {"e1": "AP"})
    _, log = read(written(mimic))
    assert log.problems[0].reason == "split is 'dev', expected train, validate, test"


@pytest.mark.parametrize("table", ["split", "metadata"])
def test_a_missing_table_is_named(mimic: Mimic, table: str) -> None:
    path = written(mimic).root / f"mimic-cxr-2.0.0-{table}.csv.gz"
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing"):
        read(mimic)


@pytest.mark.parametrize("table", ["split", "metadata", "chexpert"])
def test_a_truncated_table_is_named(mimic: Mimic, table: str) -> None:
    path = written(mimic).root / f"mimic-cxr-2.0.0-{table}.csv.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match=f"{path} is truncated"):
        read(mimic)


@pytest.mark.parametrize(
    ("table", "column"), [("split", "split"), ("metadata", "ViewPosition"), ("chexpert", "Pleural Effusion")]
)
def test_a_wrong_header_is_named_with_the_missing_column(mimic: Mimic, table: str, column: str) -> None:
    path = written(mimic).root / f"mimic-cxr-2.0.0-{table}.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode().replace(column, "other", 1)
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(UserError, match=f"{table}.csv.gz: the header lacks {column}; it has"):
        read(mimic)


def test_reports_that_are_not_there_stop_the_run(mimic: Mimic, tmp_path: Path) -> None:
    mimic.write_tables()
    with pytest.raises(UserError, match=r"data.reports=.* does not exist"):
        read(mimic, reports=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds neither files/ nor mimic-cxr-reports.zip"):
        read(mimic, reports=tmp_path / "empty")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(mimic.write_reports_zip().read_bytes()[:-30])
    with pytest.raises(UserError, match=r"broken.zip is no zip file or truncated"):
        read(mimic, reports=broken)


def test_strict_stops_at_the_first_problem(mimic: Mimic) -> None:
    mimic.study("10000032", "50000001", "train", {"e1": "AP"}, report=None)
    with pytest.raises(UserError, match=r"s50000001.txt.*is missing"):
        list(mimic_cxr.read(Source(written(mimic).root), ProblemLog(strict=True)))
