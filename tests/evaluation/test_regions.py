"""Measures of regions against numbers made by hand, and against scikit-learn on all of a set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from learner.evaluation.regions import LEAST_POSITIVES, box_iou, mean_box, measure_regions
from learner.evaluation.regiontable import print_regions, region_cells
from learner.summary import region_goals
from rrg.data.study import Box, Report, Study
from rrg.model.evidence import (
    Evidence,
    RegionEvidence,
    evidence_line,
    read_evidence_file,
    with_sentences,
    worth_a_sentence,
)

LUNG, HEART = "right lung", "cardiac silhouette"
NORMAL: Mapping[str, frozenset[str]] = {LUNG: frozenset(), HEART: frozenset()}


def study(name: str, boxes: Mapping[str, Box] | None, findings: Mapping[str, frozenset[str]] | None) -> Study:
    return Study(name, "test", (), Report("text"), "rendered_openi", boxes=boxes, region_findings=findings)


def region(
    name: str, significance: float = 0.1, box: tuple[float, float, float, float] | None = None, *findings: str
) -> RegionEvidence:
    return RegionEvidence(name, significance, box, dict.fromkeys(findings, 0.9))


def measured(studies: Sequence[Study], evidence: Sequence[Evidence], train: Sequence[Study] = ()) -> dict[str, object]:
    by_id = {one.id: regions for one, regions in zip(studies, evidence, strict=True)}
    found = measure_regions(by_id, studies, train)
    assert found is not None
    json.dumps(found, allow_nan=False)
    return found


def test_the_iou_of_boxes_is_common_area_over_area_of_both() -> None:
    assert box_iou((0, 0, 0.2, 0.2), (0, 0, 0.2, 0.2)) == pytest.approx(1)
    assert box_iou((0, 0, 0.2, 0.2), (0.1, 0, 0.3, 0.2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 0.1, 0.1), (0.5, 0.5, 0.6, 0.6)) == 0


def test_boxes_are_measured_where_there_are_true_ones_beside_the_mean_training_box() -> None:
    train = [study("a", {LUNG: Box(0.0, 0, 0.2, 0.4)}, None), study("b", {LUNG: Box(0.2, 0, 0.4, 0.4)}, None)]
    assert mean_box(train, LUNG) == pytest.approx((0.1, 0, 0.3, 0.4))
    assert mean_box(train, HEART) is None
    studies = [
        study("s", {LUNG: Box(0.1, 0, 0.3, 0.4)}, None),
        study("t", {LUNG: Box(0.2, 0, 0.4, 0.4)}, None),
        study("u", None, None),
    ]
    seen = (0.2, 0.0, 0.4, 0.4)
    found = measured(studies, [(region(LUNG, 0.1, seen), region(HEART))] * 3, train)
    lung, heart = found["regions"][LUNG], found["regions"][HEART]  # type: ignore[index]
    assert lung["iou"] == pytest.approx((1 / 3 + 1) / 2)
    assert lung["iou_mean_box"] == pytest.approx((1 + 1 / 3) / 2)
    assert (lung["boxes"], heart["boxes"], heart["iou"], heart["iou_mean_box"]) == (2, 0, None, None)
    assert found["truth"] == {"boxes": "rendered", "labels": None}
    groups = found["groups"]
    assert groups["lungs"]["iou"] == groups["all"]["iou"] == lung["iou"]  # type: ignore[index]
    assert groups["diaphragms"]["iou"] is None  # type: ignore[index]


def test_significance_is_ranked_as_scikit_learn_ranks_it_where_there_are_enough_positives() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(0)
    labels = np.arange(60) % 60 < LEAST_POSITIVES
    scores = rng.random(60) * 0.7 + labels * 0.3
    sick = {LUNG: frozenset({"opacity"}), HEART: frozenset({"cardiomegaly"})}
    few = {**sick, HEART: frozenset[str]()}
    studies = [
        study(f"s{i}", None, (few if i == 0 else sick) if positive else NORMAL) for i, positive in enumerate(labels)
    ]
    unlabelled = study("unknown", None, None)
    evidence = [(region(LUNG, float(score)), region(HEART, float(score))) for score in scores]
    found = measured([*studies, unlabelled], [*evidence, evidence[0]])
    lung, heart = found["regions"][LUNG], found["regions"][HEART]  # type: ignore[index]
    assert lung["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert lung["ap"] == pytest.approx(average_precision_score(labels, scores))
    assert (lung["positives"], lung["labelled"]) == (20, 60)
    assert (heart["auroc"], heart["ap"], heart["positives"]) == (None, None, 19)
    assert found["groups"]["all"]["auroc_regions"] == 1  # type: ignore[index]


def test_findings_of_regions_are_counted_by_study_region_and_finding() -> None:
    both = {LUNG: frozenset({"opacity", "nodule"}), HEART: frozenset({"cardiomegaly"})}
    studies = [study("s", None, both), study("t", None, NORMAL)]
    evidence = [
        (region(LUNG, 0.9, None, "opacity"), region(HEART, 0.9, None, "opacity", "cardiomegaly")),
        (region(LUNG, 0.9, None, "nodule"), region(HEART)),
    ]
    found = measured(studies, evidence)["findings"]
    # Stated: 4, of which right 2 (opacity in the lung, cardiomegaly), true: 3.
    assert found["micro"] == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7})  # type: ignore[index]
    # opacity 1/2 and 1/1, nodule 0/1 and 0/1, cardiomegaly 1 and 1.
    assert found["macro"] == pytest.approx({"precision": 0.5, "recall": 2 / 3, "f1": (2 / 3 + 0 + 1) / 3})  # type: ignore[index]
    assert found["findings"] == 3  # type: ignore[index]


def test_a_policy_without_regions_has_no_measures() -> None:
    studies = [study("s", None, NORMAL)]
    assert measure_regions({"s": ()}, studies, []) is None
    assert measure_regions({}, studies, []) is None


@pytest.mark.parametrize(
    ("changes", "truth"),
    [
        ({}, ("rendered", "rendered")),
        ({"source": "r2gen"}, ("data set", "lexicon over the report")),
        ({"source": "openi"}, ("data set", "MeSH codes")),
        ({"source": "mimic_cxr", "region_sentences": {}}, ("data set", "scene graph")),
    ],
)
def test_the_kind_of_truth_is_named(changes: dict[str, object], truth: tuple[str, str]) -> None:
    one = replace(study("s", {LUNG: Box(0, 0, 1, 1)}, NORMAL), **changes)  # type: ignore[arg-type]
    found = measured([one], [(region(LUNG, 0.1, (0, 0, 1, 1)), region(HEART))])
    assert found["truth"] == {"boxes": truth[0], "labels": truth[1]}


def test_goals_are_set_on_rendered_x_rays_alone() -> None:
    rendered = study("s", {LUNG: Box(0, 0, 1, 1), HEART: Box(0, 0, 1, 1)}, NORMAL)
    evidence = (region(LUNG, 0.1, (0, 0, 1, 1)), region(HEART, 0.1, (0, 0, 1, 0.5)))
    (goal,) = region_goals({"sft": measured([rendered], [evidence])})
    assert not goal.reached
    assert goal.detail == "lungs 1.000, heart 0.500, diaphragms -"
    assert region_goals({"sft": measured([replace(rendered, source="r2gen")], [evidence])}) == []
    assert region_goals({"sft": None}) == []


def test_the_table_has_the_groups_and_says_what_is_true() -> None:
    one = study("s", {LUNG: Box(0, 0, 1, 1)}, {LUNG: frozenset({"opacity"}), HEART: frozenset()})
    found = measured([one], [(region(LUNG, 0.1, (0, 0, 1, 0.5), "opacity"), region(HEART))])
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    print_regions(found, console, "warm start")
    text = console.export_text()
    assert "Regions, warm start" in text
    for words in ("lungs", "heart", "diaphragms", "0.500", "true boxes: rendered"):
        assert words in text
    assert "micro precision 1.000, recall 1.000, f1 1.000" in text


@pytest.mark.parametrize(
    ("boxed", "title"),
    [((LUNG, HEART), "mean of 2 regions"), ((LUNG,), "mean of 1 regions"), ((), "mean of 2 regions")],
)
def test_the_mean_of_the_regions_counts_those_with_true_boxes(boxed: Sequence[str], title: str) -> None:
    one = study("s", dict.fromkeys(boxed, Box(0, 0, 1, 1)), NORMAL)
    found = measured([one], [(region(LUNG, 0.1, (0, 0, 1, 0.5)), region(HEART, 0.1, (0, 0, 1, 0.5)))])
    assert region_cells(found)[1][-1][0] == title


def test_evidence_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    first = (region(LUNG, 0.75, (0.1, 0.2, 0.3, 0.4), "opacity"), region(HEART, 0.5, None))
    first = with_sentences(first, {0: "There is an opacity ."})
    path = tmp_path / "evidence.jsonl"
    path.write_text(evidence_line("s", first) + evidence_line("none", ()))
    assert read_evidence_file(path) == {"s": first, "none": ()}
    row = json.loads(path.read_text().splitlines()[0])
    assert set(row) == {"id", "regions"}
    assert row["regions"][0] == {
        "region": LUNG,
        "significance": 0.75,
        "box": [0.1, 0.2, 0.3, 0.4],
        "findings": {"opacity": 0.9},
        "sentence": "There is an opacity .",
    }
    assert (row["regions"][1]["box"], row["regions"][1]["sentence"]) == (None, None)


def test_sentences_are_written_of_at_most_eight_significant_regions_the_most_significant_first() -> None:
    evidence = tuple(region(str(i), 0.4 + 0.05 * i) for i in range(12))
    assert worth_a_sentence(evidence) == [11, 10, 9, 8, 7, 6, 5, 4]
    assert worth_a_sentence(evidence[:4]) == [3, 2]
