"""Pages for people: boxes over the picture, true ones dashed, sentences below; and no page without being asked."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from learner.evaluation.pictures import picture
from learner.evaluation.predictions import Prediction
from learner.evaluation.worst import cases_of, telling_cases, worst_cases
from learner.report.cases import write_cases, write_worst
from rrg.data.study import Box, Image, Report, Study
from rrg.model.evidence import Evidence, RegionEvidence

HEART = RegionEvidence("cardiac silhouette", 0.93, (0.4, 0.4, 0.75, 0.8), {"cardiomegaly": 0.9}, "Heart <big> .")
LUNG = RegionEvidence("right lung", 0.55, (0.1, 0.1, 0.4, 0.8), {}, None)
QUIET = RegionEvidence("spine", 0.2, (0.45, 0.1, 0.55, 0.9), {}, None)
EVIDENCE: Evidence = (LUNG, HEART, QUIET)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    paths = [tmp_path / "lateral.png", tmp_path / "frontal.png"]
    for shade, path in enumerate(paths):
        PILImage.fromarray(np.full((64, 64), 40 + 100 * shade, np.uint8)).save(path)
    images = (Image(paths[0], "lateral"), Image(paths[1], "frontal"))
    return Study("s0", "test", images, Report("text"), "test", boxes={"cardiac silhouette": Box(0.4, 0.4, 0.7, 0.8)})


def test_significant_regions_have_a_box_and_a_line_the_most_significant_first(study: Study) -> None:
    page = picture(study, EVIDENCE)
    found = re.findall(r'<rect class="found"[^>]*><title>([^<]*)', page)
    assert found == ["cardiac silhouette (found)", "right lung (found)"]
    assert re.findall(r'<rect class="true"[^>]*><title>([^<]*)', page) == ["cardiac silhouette (true)"]
    assert 'x="0.4000" y="0.4000" width="0.3500" height="0.4000"' in page
    assert 'x="0.4000" y="0.4000" width="0.3000" height="0.4000"' in page
    assert "spine" not in page
    lines = re.findall(r"<li>.*?</li>", page)
    assert len(lines) == 2
    assert "<b>cardiac silhouette</b> 0.93: Heart &lt;big&gt; ." in lines[0]
    assert lines[1].endswith("<b>right lung</b> 0.55</li>")
    colour = re.findall(r'stroke="(#\w+)"', page)
    assert colour[0] == colour[1] != colour[2]
    assert colour[0] in lines[0]


def test_the_picture_is_the_first_frontal_one_and_boxes_need_one(study: Study) -> None:
    both = picture(study, EVIDENCE)
    frontal = picture(Study("s", "test", study.images[1:], study.report, "test"), ())
    lateral = picture(Study("s", "test", study.images[:1], study.report, "test"), EVIDENCE)
    source = re.compile(r'src="([^"]*)"')
    assert source.findall(both) == source.findall(frontal) != source.findall(lateral)
    assert "<svg" not in frontal
    assert "<svg" not in lateral
    assert picture(None, EVIDENCE) == ""


def test_the_page_has_an_article_a_study_with_its_evidence_and_loads_nothing(study: Study, tmp_path: Path) -> None:
    rows = [Prediction("s0", "the reference", "a <b> report"), Prediction("s1", "another", "")]
    cases = cases_of(rows, [study, study], {"reward": np.array([1.0, 0.5])}, {"s0": EVIDENCE})
    write_cases(tmp_path / "page.html", cases, "The first 2 studies")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article ") == page.count("<img") == 2
    assert page.count("<svg") == 1
    assert "a b report" in page  # as the lexicon reads it
    assert "the reference" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_studies_to_look_at_are_those_with_most_significant_regions_then_abnormal_ones(study: Study) -> None:
    rows = [Prediction(f"s{i}", "r", "h") for i in range(5)]
    studies = [replace(study, findings=frozenset({"effusion"} if i == 2 else ())) for i in range(5)]
    cases = cases_of(rows, studies, {}, {"s0": (QUIET,), "s3": (LUNG,), "s4": EVIDENCE})
    assert [case.row.id for case in telling_cases(cases, 4)] == ["s4", "s3", "s2", "s0"]


def test_the_page_speaks_of_no_bars_where_it_has_none_and_counts_are_whole_numbers(tmp_path: Path) -> None:
    scores = {"words": np.array([14.0]), "findings_right": np.array([0.0]), "rougeL": np.array([0.25])}
    write_cases(tmp_path / "page.html", cases_of([Prediction("s0", "r", "h")], None, scores, {}), "One")
    page = (tmp_path / "page.html").read_text()
    assert "words 14, findings_right 0, rougeL 0.250" in page
    assert "The tick on a bar" not in page


def test_the_worst_come_lowest_first_and_those_without_a_score_not_at_all(study: Study, tmp_path: Path) -> None:
    rows = [Prediction(f"s{i}", "r", "h") for i in range(4)]
    cases = cases_of(rows, None, {"reward": np.array([0.3, np.nan, 0.1, 0.2])}, {})
    worst = worst_cases(cases, "reward", 2)
    assert [case.row.id for case in worst] == ["s2", "s3"]
    write_worst(tmp_path / "w.html", worst, "reward")
    assert "The 2 studies with the lowest reward" in (tmp_path / "w.html").read_text()
