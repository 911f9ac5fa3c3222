"""The labeller: polarity, phrasing, regions, and how well it agrees with the indexers of Open-i."""

from __future__ import annotations

import pytest

from rrg.data.findings import findings_from_mesh
from rrg.data.formats import openi
from rrg.data.mentions import findings_by_region, findings_in, region_sentences
from rrg.data.studyset import ProblemLog


@pytest.mark.parametrize(
    "text",
    [
        "heart size within normal limits",
        "the heart is normal in size",
        "the heart is not enlarged",
        "the heart is not significantly enlarged",
        "no cardiomegaly",
        "cardiomediastinal silhouette is stable",
        "no focal airspace consolidation pleural effusion or pneumothorax",
        "negative for pneumothorax or effusion",
        "the lungs are free of focal airspace disease",
        "no acute bony abnormality",
        "pleural effusion has resolved",
        "without evidence of granulomatous disease",
        "",
    ],
)
def test_normal_and_denied_statements_mean_no_finding(text: str) -> None:
    assert findings_in(text) == frozenset()


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("The heart is enlarged.", {"cardiomegaly"}),
        ("mild cardiomegaly without edema", {"cardiomegaly"}),
        ("no pneumothorax but there is a small right pleural effusion", {"effusion"}),
        ("heart size is enlarged pulmonary vascularity within normal limits", {"cardiomegaly"}),
        ("Low lung volumes. Tortuous aorta.", {"hypoinflation", "tortuous_aorta"}),
        ("calcified granuloma in the left upper lobe", {"granuloma"}),
        ("degenerative changes of the thoracic spine", {"degenerative_spine"}),
        ("left-sided pacemaker with intact leads", {"pacemaker"}),
        ("old right rib fractures", {"fracture"}),
    ],
)
def test_stated_findings_are_found(text: str, findings: set[str]) -> None:
    assert findings_in(text) == findings


def test_side_and_zone_come_from_the_sentence() -> None:
    by_region = findings_by_region("There is consolidation in the left lower lobe. Right apical pneumothorax.")
    assert by_region["left lower lung zone"] == {"consolidation"}
    assert by_region["right apical zone"] == {"pneumothorax"}
    assert by_region["right lower lung zone"] == frozenset()


def test_sentences_are_matched_to_the_regions_they_speak_of() -> None:
    found = region_sentences("The heart is normal in size. Opacity in the left base. No effusion.")
    assert found["cardiac silhouette"] == ["the heart is normal in size"]
    assert found["left lower lung zone"] == ["opacity in the left base"]
    assert "right lower lung zone" not in found
    assert found["right costophrenic angle"] == ["no effusion"]


def test_a_stated_finding_takes_its_sentence_to_its_own_regions() -> None:
    found = region_sentences("calcified granuloma on the left . the aorta is tortuous and the heart is normal .")
    assert [name for name, texts in found.items() if texts[0].startswith("calcified")] == [
        "left lung",
        "left upper lung zone",
    ]
    assert [name for name, texts in found.items() if "tortuous" in texts[-1]] == ["aortic arch", "mediastinum"]


def test_every_stated_finding_is_said_of_the_regions_that_hold_it() -> None:
    text = "small left effusion with opacity in the right upper lobe . no pneumothorax . dextroscoliosis ."
    said = region_sentences(text)
    for region, findings in findings_by_region(text).items():
        assert findings <= findings_in(" . ".join(said.get(region, ())))


def test_the_labeller_agrees_with_the_indexers_on_held_out_reports() -> None:
    records = openi.read_records(openi.find_archive(), ProblemLog())
    hits = claimed = coded = 0
    for split, _, number in openi.split_ids():
        record = records[number]
        if split != "test" or not record.indexed:
            continue
        truth, _ = findings_from_mesh(record.mesh)
        found = findings_in(record.sections["findings"])
        hits, claimed, coded = hits + len(found & truth), claimed + len(found), coded + len(truth)
    assert hits / claimed > 0.88
    assert hits / coded > 0.86
