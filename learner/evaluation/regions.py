"""How well the regions were seen: boxes from attention, significance and findings of regions against what is true.

Contract: pure functions of evidence (`rrg.model.evidence`) and studies. A measure is there only where the studies have
the truth for it, and `truth` names its kind: a box that somebody drew and a label that a lexicon read from the
reference report are not the same thing. Means over regions weigh every region the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from learner.evaluation.measures import CODED, RENDERED
from rrg.data.study import Box, Study
from rrg.model.evidence import Evidence

LEAST_POSITIVES: Final = 20
"""A region with fewer positive (or no negative) studies gets no AUROC: it would be noise."""

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "lungs": ("right lung", "left lung"),
    "heart": ("cardiac silhouette",),
    "diaphragms": ("right hemidiaphragm", "left hemidiaphragm"),
}
"""What the table shows beside the mean of all regions."""

RegionMeasures = dict[str, Any]
"""See `measure_regions`."""

IOU_GOAL: Final = 0.6
"""Of rendered X-rays, for every group of `GROUPS`."""

AUROC_GOAL: Final = 0.9
"""Of rendered X-rays, for every region that has an AUROC."""

_MEASURES: Final = ("iou", "iou_mean_box", "auroc", "ap")


def measure_regions(
    evidence: Mapping[str, Evidence], studies: Sequence[Study], train: Sequence[Study]
) -> RegionMeasures | None:
    """The measures of `studies`, strict JSON; None where no evidence has a region (`model.regions=off`).

    {"studies", "truth": {"boxes", "labels"}, "regions": {region: {"iou" (mean), "boxes" (studies with a true box),
    "iou_mean_box" (the control: the mean box of the region in `train` for every study), "auroc" and "ap" of the
    significance (`LEAST_POSITIVES`), "positives", "labelled" (studies)}}, "groups": {group of `GROUPS` or "all": the
    mean of each measure over its regions that have it, and of how many}, "findings": see `_findings`}.
    """
    seen = [(study, evidence[study.id]) for study in studies if evidence.get(study.id)]
    if not seen:
        return None
    names = [one.region for one in seen[0][1]]
    by_region = {name: _region(row, name, seen, train) for row, name in enumerate(names)}
    groups = {group: [by_region[name] for name in members if name in by_region] for group, members in GROUPS.items()}
    return {
        "studies": len(seen),
        "truth": {"boxes": _box_truth(studies), "labels": _label_truth(studies)},
        "regions": by_region,
        "groups": {group: _means(members) for group, members in {**groups, "all": list(by_region.values())}.items()},
        "findings": _findings(seen),
    }


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def mean_box(studies: Sequence[Study], region: str) -> tuple[float, ...] | None:
    """The mean of each side of a region's boxes; None where no study has one."""
    boxes = [_corners(study.boxes[region]) for study in studies if study.boxes is not None and region in study.boxes]
    return tuple(np.mean(boxes, axis=0).tolist()) if boxes else None


def _region(row: int, name: str, seen: Sequence[tuple[Study, Evidence]], train: Sequence[Study]) -> dict[str, Any]:
    pairs = [
        (evidence[row].box, _corners(study.boxes[name]))
        for study, evidence in seen
        if study.boxes is not None and name in study.boxes and evidence[row].box is not None
    ]
    usual = mean_box(train, name)
    labelled = [(s.region_findings, evidence[row]) for s, evidence in seen if s.region_findings is not None]
    labels = np.array([bool(findings.get(name)) for findings, _ in labelled], dtype=bool)
    auroc, ap = _ranking(labels, np.array([one.significance for _, one in labelled]))
    return {
        "iou": _mean([box_iou(found, true) for found, true in pairs if found is not None]),
        "iou_mean_box": None if usual is None else _mean([box_iou(usual, true) for _, true in pairs]),
        "boxes": len(pairs),
        "auroc": auroc,
        "ap": ap,
        "positives": int(labels.sum()),
        "labelled": len(labels),
    }


def _ranking(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> tuple[float | None, float | None]:
    """AUROC and average precision; None where there are too few positives or no negative."""
    if labels.sum() < LEAST_POSITIVES or labels.all():
        return None, None
    from sklearn.metrics import average_precision_score, roc_auc_score  # type: ignore[import-untyped]

    return float(roc_auc_score(labels, scores)), float(average_precision_score(labels, scores))


def _findings(seen: Sequence[tuple[Study, Evidence]]) -> dict[str, Any]:
    """Precision, recall and F1 of the findings of regions: {"micro": over all (study, region, finding), "macro": means
    over the findings that are true somewhere, "findings": how many those are}; None where nothing is labelled."""
    counts: dict[str, npt.NDArray[np.float64]] = {}
    for study, evidence in seen:
        if study.region_findings is None:
            continue
        for one in evidence:
            stated, true = set(one.findings), study.region_findings.get(one.region, frozenset())
            for name in stated | true:
                row = counts.setdefault(name, np.zeros(3))
                row += (name in stated and name in true, name in stated, name in true)
    real = [row for row in counts.values() if row[2]]
    if not real:
        return {"micro": None, "macro": None, "findings": 0}
    macro = np.mean([_scores(row) for row in real], axis=0)
    return {
        "micro": _named(_scores(np.sum(list(counts.values()), axis=0))),
        "macro": _named(macro.tolist()),
        "findings": len(real),
    }


def _scores(counts: npt.NDArray[np.float64]) -> list[float]:
    """Precision, recall and F1 of [true positives, stated, true]; 0 / 0 counts as 0."""
    hits, stated, true = counts.tolist()
    return [hits / max(stated, 1), hits / max(true, 1), 2 * hits / max(stated + true, 1)]


def _named(scores: Sequence[float]) -> dict[str, float]:
    return dict(zip(("precision", "recall", "f1"), scores, strict=True))


def _means(regions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means: dict[str, Any] = {}
    for name in _MEASURES:
        values = [region[name] for region in regions if region[name] is not None]
        means |= {name: _mean(values), f"{name}_regions": len(values)}
    return means


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.x0, box.y0, box.x1, box.y1


def _box_truth(studies: Sequence[Study]) -> str | None:
    boxed = [study for study in studies if study.boxes]
    if not boxed:
        return None
    return "rendered" if all(study.source == RENDERED for study in boxed) else "data set"


def _label_truth(studies: Sequence[Study]) -> str | None:
    """Loaders fill what the data set does not tell from the report's text (`rrg.data.dataset`)."""
    labelled = [study for study in studies if study.region_findings is not None]
    if not labelled:
        return None
    if all(study.source == RENDERED for study in labelled):
        return "rendered"
    if any(study.region_sentences is not None for study in labelled):
        return "scene graph"
    return "MeSH codes" if all(study.source in CODED for study in labelled) else "lexicon over the report"
