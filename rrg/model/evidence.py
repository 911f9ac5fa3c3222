"""What the model saw, for people: of every region how significant it is, where it lies, its findings, its sentence.

Contract: plain records; a line of JSON a study by `evidence_line`, read back by `read_evidence_file`. torch need not
be imported for them. Boxes are x0, y0, x1, y1 as fractions of the first frontal image's square
(`rrg.data.images.load_image`), read from the attention alone. The sentence of a region is what the language model
writes after that region's token and nothing else of the image (`actors.evidence`). Evidence is as private as a report:
it is never logged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

    from rrg.data.study import Study
    from rrg.model.extractor import RegionOutput
    from rrg.model.policy import ReportPolicy

SIGNIFICANT: Final = 0.5
"""From this probability on a region is worth a sentence and a box in pictures."""

STATED: Final = 0.5
"""Findings of a region that are less probable are left out."""

MAX_SENTENCES: Final = 8

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class RegionEvidence:
    """One region of one study.

    `significance` is the probability that anything is abnormal there, `findings` the probabilities of the findings
    above `STATED`. `box` is None where the study has no frontal image, `sentence` where none was written (not
    significant enough, more than `MAX_SENTENCES` regions, or failed).
    """

    region: str
    significance: float
    box: Corners | None
    findings: Mapping[str, float]
    sentence: str | None = None


Evidence = tuple[RegionEvidence, ...]
"""All regions of a study in the policy's order; none for a policy without regions."""


def first_frontal(study: Study) -> int | None:
    """The index of the image that boxes refer to."""
    return next((index for index, image in enumerate(study.images) if image.view == "frontal"), None)


def read_evidence(policy: ReportPolicy, study: Study, seen: RegionOutput) -> Evidence:
    """The evidence of a study, without sentences; `seen` is the extractor's output for this study alone (B = 1)."""
    if not policy.regions:
        return ()
    significance = seen.significance[0].float().sigmoid().tolist()
    findings = seen.findings[0].float().sigmoid().tolist()
    boxes = _boxes(seen.attention[0], policy.extractor.shape.grid, first_frontal(study))
    return tuple(
        RegionEvidence(
            region=region,
            significance=significance[row],
            box=boxes[row] if boxes else None,
            findings={n: p for n, p in zip(policy.findings, findings[row], strict=True) if p > STATED},
        )
        for row, region in enumerate(policy.regions)
    )


def worth_a_sentence(evidence: Evidence) -> list[int]:
    """The regions to write a sentence of: at most `MAX_SENTENCES`, the most significant first."""
    order = sorted(range(len(evidence)), key=lambda row: -evidence[row].significance)
    return [row for row in order if evidence[row].significance >= SIGNIFICANT][:MAX_SENTENCES]


def with_sentences(evidence: Evidence, sentences: Mapping[int, str]) -> Evidence:
    """The same with the sentences of some regions, by their index."""
    return tuple(replace(one, sentence=sentences.get(row, one.sentence)) for row, one in enumerate(evidence))


def evidence_line(study_id: str, evidence: Evidence) -> str:
    """A line of an evidence file: {"id", "regions": [fields of `RegionEvidence`]}."""
    return json.dumps({"id": study_id, "regions": [asdict(one) for one in evidence]}, allow_nan=False) + "\n"


def read_evidence_file(path: Path) -> dict[str, Evidence]:
    """The evidence of every study in an evidence file, by id."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["id"]: tuple(_region(one) for one in row["regions"]) for row in rows}


def _region(fields: Mapping[str, Any]) -> RegionEvidence:
    box = fields["box"]
    corners: Corners | None = None if box is None else (box[0], box[1], box[2], box[3])
    return RegionEvidence(**{**fields, "box": corners})


def _boxes(attention: Tensor, grid: int, image: int | None) -> list[Corners] | None:
    """A box a region, from `attention` [R, N] to the patches of the study's image `image`."""
    if image is None:
        return None
    from rrg.model.boxes import attention_boxes

    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in attention_boxes(attention, grid, image * grid**2).tolist()]
