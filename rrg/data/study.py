"""A study: the X-rays of one examination with its report, and what is known about its regions.

Contract: every loader in `rrg.data` yields `Study`; nothing downstream knows which format it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

Split = Literal["train", "val", "test"]
View = Literal["frontal", "lateral"]
Target = Literal["findings", "impression", "both"]
# Between findings and impression where a report is both; stays what it is when the text is cleaned again.
IMPRESSION_MARK: Final = "impression ."


@dataclass(frozen=True)
class Image:
    """One X-ray on disk; decoded only when asked for. `guessed`: nothing but its place among others tells the view."""

    path: Path
    view: View
    guessed: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Report:
    """The sections of a radiology report; a missing section is the empty string."""

    findings: str = ""
    impression: str = ""
    indication: str = ""
    comparison: str = ""


@dataclass(frozen=True)
class Box:
    """A region's bounding box as fractions of the image's width and height, 0 <= x0 < x1 <= 1."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Study:
    """One examination.

    `findings` are the codes of `rrg.data.findings.FINDINGS` that hold for the study (empty: normal),
    `region_findings` the same by anatomical region, `boxes` where the regions lie in the first frontal image,
    `region_sentences` the sentences of the report that speak of a region, `labels` the columns of a report labeller by
    name: 1 positive, 0 negative, -1 uncertain. Each is None where the source does not tell. `target_sections` says what
    of the report is to be written.
    """

    id: str
    split: Split
    images: tuple[Image, ...]
    report: Report
    source: str
    findings: frozenset[str] | None = None
    region_findings: Mapping[str, frozenset[str]] | None = None
    boxes: Mapping[str, Box] | None = None
    patient: str | None = None
    region_sentences: Mapping[str, tuple[str, ...]] | None = None
    labels: Mapping[str, float] | None = None
    target_sections: Target = "findings"

    @property
    def target(self) -> str:
        """The text that the policy learns to write. Of both sections, a sentence of one word stands between them."""
        if self.target_sections == "both":
            return f"{self.report.findings} {IMPRESSION_MARK} {self.report.impression}"
        return self.report.impression if self.target_sections == "impression" else self.report.findings

    @property
    def abnormal(self) -> bool:
        """Whether any finding is known to hold."""
        return bool(self.findings)
