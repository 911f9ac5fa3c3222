"""The measures of regions (`learner.evaluation.regions`) as a table, for the terminal and for a page.

Contract: shows the groups of regions; all regions one by one are in the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from learner.evaluation.regions import LEAST_POSITIVES, RegionMeasures
from learner.evaluation.tables import filled_table

_COLUMNS = {"iou": "box IoU", "iou_mean_box": "mean training box", "auroc": "AUROC", "ap": "AP"}


def region_cells(measures: RegionMeasures) -> tuple[list[str], list[list[str]]]:
    """Column titles, and a row a group."""
    rows = []
    for group, means in measures["groups"].items():
        # Those with true boxes, if there are any; AUROC and AP have the number of theirs behind them.
        name = f"mean of {means['iou_regions'] or len(measures['regions'])} regions" if group == "all" else group
        rows.append([name, *(_cell(means, measure) for measure in _COLUMNS)])
    return ["regions", *_COLUMNS.values()], rows


def region_notes(measures: RegionMeasures) -> list[str]:
    """What the numbers are measured against, and the findings of regions."""
    truth, findings, every = measures["truth"], measures["findings"], measures["groups"]["all"]
    boxes, labels = (truth[name] or "not known" for name in ("boxes", "labels"))
    notes = [
        f"{measures['studies']} studies; true boxes: {boxes}; true labels: {labels}",
        f"significance: {every['auroc_regions']} regions have {LEAST_POSITIVES} positive studies or more",
    ]
    if findings["micro"] is not None:
        shown = (
            f"{kind} " + ", ".join(f"{n} {v:.3f}" for n, v in findings[kind].items()) for kind in ("micro", "macro")
        )
        notes.append(f"findings of regions: {'; '.join(shown)} (over {findings['findings']} findings)")
    return notes


def print_regions(measures: RegionMeasures, console: Console, whose: str) -> None:
    header, rows = region_cells(measures)
    console.print(f"[bold]Regions, {whose}[/bold]", filled_table(header, rows), sep="\n", highlight=False)
    for note in region_notes(measures):
        console.print(note, highlight=False, soft_wrap=True)


def _cell(means: Mapping[str, Any], measure: str) -> str:
    """A mean; with the number of its regions where that is not plain."""
    value = means[measure]
    if value is None:
        return "-"
    counted = f" ({means[measure + '_regions']})" if measure in ("auroc", "ap") else ""
    return f"{value:.3f}{counted}"
