"""MeSH codes become findings, sides and regions."""

from __future__ import annotations

import pytest

from rrg.data.findings import FINDINGS, findings_from_mesh, parse_code, signs_from_mesh
from rrg.data.regions import REGIONS, load_descriptions
from rrg.data.sections import clean, sentences


def test_there_are_29_regions_with_descriptions_and_at_least_20_findings() -> None:
    assert len(REGIONS) == len(set(REGIONS)) == 29
    assert all(load_descriptions().values())
    assert len(FINDINGS) == len(set(FINDINGS)) >= 20


@pytest.mark.parametrize(
    ("code", "finding", "regions"),
    [
        ("Cardiomegaly/mild", "cardiomegaly", {"cardiac silhouette"}),
        ("Opacity/lung/base/left", "opacity", {"left lower lung zone", "left lung"}),
        ("Opacity/lung/lingula", "opacity", {"left mid lung zone", "left lung"}),
        ("Airspace Disease/lung/middle lobe/right", "consolidation", {"right mid lung zone", "right lung"}),
        ("Nodule/lung/upper lobe/right", "nodule", {"right upper lung zone", "right lung"}),
        ("Diaphragm/right/elevated", "elevated_diaphragm", {"right hemidiaphragm"}),
        ("Fractures, Bone/clavicle/left", "fracture", {"left clavicle"}),
        ("Surgical Instruments/abdomen/right", "surgical_material", {"abdomen"}),
        ("Surgical Instruments/breast/left", "surgical_material", {"left lung"}),
        ("Catheters, Indwelling/right", "catheter", {"svc", "cavoatrial junction"}),
    ],
)
def test_a_code_names_its_finding_and_its_regions(code: str, finding: str, regions: set[str]) -> None:
    findings, by_region = findings_from_mesh([code])
    assert findings == {finding}
    assert {region for region, codes in by_region.items() if codes} == regions


def test_a_code_without_a_side_holds_on_both_sides() -> None:
    (sign,) = parse_code("Pulmonary Atelectasis/base")
    assert sign.sides == ("right", "left")
    assert not sign.sided


def test_severity_words_are_graded() -> None:
    degrees = [parse_code(f"Cardiomegaly{word}")[0].severity for word in ("/borderline", "/mild", "", "/severe")]
    assert degrees == sorted(set(degrees))


def test_normal_and_unknown_codes_mean_no_finding_but_every_region_is_listed() -> None:
    findings, by_region = findings_from_mesh(["normal", "Technical Quality of Image Unsatisfactory "])
    assert findings == frozenset()
    assert set(by_region) == set(REGIONS)


def test_the_same_code_twice_is_one_sign() -> None:
    assert len(signs_from_mesh(["Cardiomegaly", "Cardiomegaly"])) == 1


def test_cleaning_drops_marks_of_deidentification_list_numbers_and_case() -> None:
    assert clean("1. Heart size is XXXX. No x-XXXX, 1.4 cm nodule..") == "heart size is . no 1.4 cm nodule ."
    assert clean("___ XXXX.") == ""


def test_cleaning_a_clean_text_changes_nothing() -> None:
    once = clean("The lungs are clear; left-sided PICC, and/or port. No effusion?")
    assert clean(once) == once
    assert sentences(once) == ["the lungs are clear", "left-sided picc and or port", "no effusion"]
