"""ReXrank's JSON: the three published flavours in, predictions out and in again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rrg.data.formats import rexrank
from rrg.data.formats.source import Source
from rrg.data.study import Study
from rrg.data.studyset import ProblemLog
from rrg.errors import UserError
from tests.data.formats.iu_fixture import picture

IU: dict[str, Any] = {
    "key_image_path": "CXR2056_IM-0694-1001/1.png",
    "image_path": ["CXR2056_IM-0694-1001/0.png", "CXR2056_IM-0694-1001/1.png"],
    "report": "Findings: Heart is large. Impression: Big heart.",
    "section_findings": "Heart is large.",
    "section_impression": "Big heart.",
    "split": "val",
    "frontal_lateral": ["Lateral", "Frontal"],
    "context": "Indication: XXXX-year-old with cough. Comparison: None.",
}
MIMIC: dict[str, Any] = {
    "image_path": ["/p10/p10046166/s50051329/a.jpg", "/p10/p10046166/s50051329/b.jpg"],
    "section_findings": "No effusion.\nLungs clear.",
    "section_impression": float("nan"),
    "frontal_lateral": ["left lateral", "antero-posterior"],
    "split": "test",
    "subject_id": 10046166,
    "context": "Age:50-60.Gender:M.Indication: ___-year-old male.Comparison: Radiograph from ___.",
    "key_image_path": "/p10/p10046166/s50051329/b.jpg",
    "report": "Findings: No effusion.\nLungs clear. Impression: None.",
}
PLUS: dict[str, Any] = {
    "image_path": ["valid/patient64620/study1/view1_frontal.png"],
    "report": "Findings: None. Impression: 1. NO CHANGE.",
    "context": "Age:77.0.Gender:F.Indication:nanComparison: None.",
    "section_clinical_history": float("nan"),
    "section_findings": float("nan"),
    "section_impression": "\n1. NO CHANGE.\n",
    "frontal_lateral": ["Frontal"],
    "key_image_path": "valid/patient64620/study1/view1_frontal.png",
}
ALL = {"CXR2056_IM-0694-1001": IU, "50051329": MIMIC, "patient64620_study1": PLUS}


def write(root: Path, content: Any = ALL, name: str = "ReXRank_test.json") -> Path:
    for folder, record in (("images", IU), ("files", MIMIC), ("PNG", PLUS)):
        for image in record["image_path"]:
            picture(root / folder / str(image).removeprefix("/"))
    (root / name).write_text(json.dumps(content, indent=4), encoding="utf-8")
    return root / name


def read(root: Path, log: ProblemLog | None = None) -> list[Study]:
    return list(rexrank.read(Source(root), log or ProblemLog(strict=True)))


def test_the_iu_flavour(tmp_path: Path) -> None:
    study = read(write(tmp_path))[0]
    assert (study.id, study.split, study.patient) == ("CXR2056_IM-0694-1001", "val", "CXR2056")
    assert (study.report.findings, study.report.impression) == ("Heart is large.", "Big heart.")
    assert (study.report.indication, study.report.comparison) == ("XXXX-year-old with cough.", "None.")
    assert [(image.path.name, image.view) for image in study.images] == [("1.png", "frontal"), ("0.png", "lateral")]


def test_the_mimic_flavour(tmp_path: Path) -> None:
    study = read(write(tmp_path))[1]
    assert (study.id, study.split, study.patient) == ("50051329", "test", "10046166")
    assert (study.report.findings, study.report.impression) == ("No effusion.\nLungs clear.", "")
    assert (study.report.indication, study.report.comparison) == ("___-year-old male.", "Radiograph from ___.")
    assert [(image.path.name, image.view) for image in study.images] == [("b.jpg", "frontal"), ("a.jpg", "lateral")]


def test_the_chexpert_plus_flavour(tmp_path: Path) -> None:
    study = read(write(tmp_path))[2]
    assert (study.id, study.split, study.patient) == ("patient64620_study1", "test", "patient64620")
    assert (study.report.findings, study.report.impression) == ("", "1. NO CHANGE.")
    assert (study.report.indication, study.report.comparison) == ("", "None.")


def test_without_views_the_key_image_is_the_frontal_one(tmp_path: Path) -> None:
    record = {name: value for name, value in MIMIC.items() if name != "frontal_lateral"}
    (study,) = read(write(tmp_path, {"s": record}))
    assert [(image.path.name, image.view) for image in study.images] == [("b.jpg", "frontal"), ("a.jpg", "lateral")]


def test_a_context_in_tags_is_understood() -> None:
    text = "<context>Indication: Fever.\nCough.Comparison: None</context>"
    assert rexrank.context_sections(text) == ("Fever.\nCough.", "None")


def test_the_root_is_the_file_or_a_folder_with_only_that_one(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert len(read(tmp_path)) == len(read(path)) == 3
    write(tmp_path, name="ReXRank_valid.json")
    with pytest.raises(UserError, match=r"exactly one \*\.json \(found: ReXRank_test\.json, ReXRank_valid\.json\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("bad", "field", "reason"),
    [
        ("text", "-", "not an object"),
        (IU | {"section_findings": float("nan"), "section_impression": ""}, "section_findings", "missing or empty"),
        (IU | {"split": "holdout"}, "split", "'holdout' is none of train, val, test"),
        (IU | {"image_path": None}, "image_path", "is missing"),
        (IU | {"image_path": ["gone.png"]}, "image_path", "gone.png is missing"),
        (IU | {"image_path": ["../../etc/passwd"]}, "image_path", "points outside of"),
        (IU | {"image_path": ["//etc/passwd"]}, "image_path", "points outside of"),
    ],
)
def test_a_bad_record_is_listed_with_file_field_and_reason(tmp_path: Path, bad: Any, field: str, reason: str) -> None:
    log = ProblemLog()
    assert len(read(write(tmp_path, {"good": IU, "bad": bad}), log)) == 1
    (problem,) = log.problems
    assert problem.file.endswith("ReXRank_test.json[bad]")
    assert problem.field == field
    assert reason in problem.reason


def test_a_study_that_comes_twice_is_listed_and_the_first_kept(tmp_path: Path) -> None:
    path = write(tmp_path)
    second = json.dumps(IU | {"section_findings": "Second."})
    path.write_text(f'{{"s": {json.dumps(IU)}, "s": {second}}}')
    log = ProblemLog()
    assert [study.report.findings for study in read(path, log)] == ["Heart is large."]
    assert "occurs twice" in str(log.problems[0])


@pytest.mark.parametrize(
    ("content", "message"), [(b"[]", "must be an object"), (b"{", "is not JSON"), (b'{"\xe9": 1}', "is not UTF-8")]
)
def test_a_useless_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_predictions_are_the_studies_with_a_text_each(tmp_path: Path) -> None:
    studies, out = write(tmp_path), tmp_path / "predictions.json"
    rexrank.write_predictions(out, studies, dict.fromkeys(ALL, "Clear lungs."))
    written = json.loads(out.read_text())
    assert list(written) == list(ALL)
    assert written["CXR2056_IM-0694-1001"] == IU | {"model_prediction": "Clear lungs."}


def test_predictions_must_fit_the_studies(tmp_path: Path) -> None:
    studies, out = write(tmp_path), tmp_path / "predictions.json"
    with pytest.raises(UserError, match="2 studies have no prediction, the first is '50051329'"):
        rexrank.write_predictions(out, studies, {"CXR2056_IM-0694-1001": "Clear."})
    with pytest.raises(UserError, match=r"1 studies are not in .*ReXRank_test\.json, the first is 'other'"):
        rexrank.write_predictions(out, studies, dict.fromkeys([*ALL, "other"], "Clear."))
    assert not out.exists()


def test_predictions_are_read_by_findings_or_as_the_official_scorer_does(tmp_path: Path) -> None:
    studies, out = write(tmp_path), tmp_path / "predictions.json"
    texts = dict.fromkeys(ALL, "Clear.") | {"50051329": "Findings: No\neffusion. Impression:Normal."}
    rexrank.write_predictions(out, studies, texts)
    assert rexrank.read_predictions(out) == [
        ("CXR2056_IM-0694-1001", "Heart is large.", "Clear."),
        ("50051329", "No effusion.\nLungs clear.", "No\neffusion."),
        ("patient64620_study1", "", "Clear."),
    ]
    assert rexrank.read_predictions(out, "report")[1] == (
        "50051329",
        "Findings: No effusion.\nLungs clear. Impression: None",
        "Findings: No\neffusion. Impression:Normal.",
    )
    with pytest.raises(UserError, match=r"\[CXR2056_IM-0694-1001\]: model_prediction is missing"):
        rexrank.read_predictions(studies)
