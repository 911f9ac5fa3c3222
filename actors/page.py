"""The page's tab of a policy: X-rays uploaded, the report and the regions seen.

Contract: pixels and text go from the browser to the policy and back, to no log and to no file but the page's own folder
(`reward_server.page.serving`). What can't be reported is a message in the place of the report. A region has one colour,
that of `rrg.model.drawing`, for its box and its sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final

import gradio as gr

from actors.writer import ReportWriter, Written
from reward_server.page.render import problem
from reward_server.page.serving import OneThread, TookTooLongError
from rrg.data.imagefiles import SUFFIXES, study_of_files
from rrg.data.study import Study
from rrg.errors import UserError
from rrg.model.drawing import data_uri, significant
from rrg.model.evidence import Evidence, RegionEvidence, first_frontal

_SIDE: Final = 512  # pixels of the picture
_MOST_IMAGES: Final = 8
_SENTENCE: Final = re.compile(r"[^.]*\.*\s*")  # with what follows it: together they are the text
_LONGEST: Final = 2_000  # characters of an indication


class Reporting:
    """What the button does."""

    def __init__(self, writer: ReportWriter, thread: OneThread) -> None:
        self._writer, self._thread = writer, thread
        self.checkpoint = writer.checkpoint

    @property
    def reads_indication(self) -> bool:
        """Whether the policy's prompt tells the indication."""
        return "indication" in self.checkpoint.context

    def __call__(self, files: Sequence[str] | None, indication: str) -> str:
        """The report and what was seen, as HTML."""
        if not files:
            return problem("No X-ray yet: choose a PNG, JPEG or DICOM file, or several of one examination.")
        if len(files) > _MOST_IMAGES:
            return problem(f"{len(files)} files: a study has {_MOST_IMAGES} images at most.")
        if len(indication) > _LONGEST:
            return problem(f"The indication has {len(indication)} characters; the most are {_LONGEST}.")
        try:
            return self._thread.run(lambda: self._report([Path(file) for file in files], indication))
        except (UserError, OSError, TookTooLongError) as error:
            return problem(_without_folders(str(error), files))

    def _report(self, paths: Sequence[Path], indication: str) -> str:
        study = study_of_files(paths, paths[0].name, indication=indication if self.reads_indication else "")
        return seen(self._writer.write(study))


def report_tab(reporting: Reporting) -> None:
    """Adds the tab's content to the page that is being built."""
    caution = reporting.checkpoint.caution
    about = f"Written by the policy <b>{escape(reporting.checkpoint.name)}</b>{f', {caution}' if caution else ''}."
    gr.HTML(f'<p class="backend">{about}</p>')
    with gr.Row():
        files = gr.File(
            label="X-rays (PNG, JPEG, DICOM)",
            file_count="multiple",
            file_types=list(SUFFIXES),
            min_width=320,
            elem_id="xrays",
        )
        indication = gr.Textbox(
            label="Indication: why it was taken",
            info=None if reporting.reads_indication else "This policy's prompt has no indication.",
            interactive=reporting.reads_indication,
            lines=4,
            min_width=320,
            elem_id="indication",
        )
    button = gr.Button("Write the report", variant="primary", elem_id="write")
    shown = gr.HTML(elem_id="seen")
    button.click(reporting, [files, indication], shown, api_visibility="private", concurrency_limit=1)


def seen(written: Written) -> str:
    """The picture with its boxes, the report, and the significant regions."""
    shown = significant(written.evidence)
    cut = " <small>(cut: the longest report that the policy's run allowed)</small>" if written.cut else ""
    regions = "".join(_region(one, colour) for one, colour in shown)
    nothing = "No region is significant." if written.evidence else "This policy has no regions."
    return (
        f'<section class="seen">{_figure(written.study, written.evidence)}'
        f'<div><h3>Report</h3><p class="written">{_coloured(written.report, shown)}{cut}</p>'
        f"<h3>Significant regions</h3>{f'<ul>{regions}</ul>' if regions else f'<p>{nothing}</p>'}</div></section>"
    )


def _figure(study: Study, evidence: Evidence) -> str:
    """The first frontal image, which boxes refer to (else the first image, without boxes)."""
    frontal = first_frontal(study)
    image = study.images[frontal or 0]
    boxes = "".join(_boxes(evidence)) if frontal is not None else ""
    views = "; ".join(f"{one.view}: {one.path.name}" for one in study.images)
    return (
        f'<figure><svg viewBox="0 0 {_SIDE} {_SIDE}" role="img" aria-label="X-ray with the boxes of its regions">'
        f'<image href="{data_uri(image.path, _SIDE, "png")}" width="{_SIDE}" height="{_SIDE}"/>{boxes}</svg>'
        f"<figcaption>{escape(views)}</figcaption></figure>"
    )


def _boxes(evidence: Evidence) -> Iterator[str]:
    for one, colour in significant(evidence):
        if one.box is not None:
            x0, y0, x1, y1 = (corner * _SIDE for corner in one.box)
            yield (
                f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="none"'
                f' stroke="{colour}" stroke-width="3"><title>{escape(one.region)}</title></rect>'
            )


def _coloured(report: str, shown: Sequence[tuple[RegionEvidence, str]]) -> str:
    """The report; a sentence that a region's token made the model write, word for word, has the region's colour."""
    told = {_bare(one.sentence): (one, colour) for one, colour in reversed(shown) if one.sentence}
    parts = []
    for sentence in _SENTENCE.findall(report):
        one, colour = told.get(_bare(sentence), (None, ""))
        text = escape(sentence)
        if one is not None:
            text = f'<span class="told" style="--region: {colour}" title="{escape(one.region)}">{text}</span>'
        parts.append(text)
    return "".join(parts)


def _bare(sentence: str) -> str:
    return sentence.strip(" .")


def _region(one: RegionEvidence, colour: str) -> str:
    findings = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in one.findings.items())
    sentence = f"<br>{escape(one.sentence)}" if one.sentence else ""
    more = f"<br><small>{escape(findings)}</small>" if findings else ""
    return (
        f'<li style="--region: {colour}"><b>{escape(one.region)}</b> '
        f"<small>significant: {one.significance:.0%}</small>{sentence}{more}</li>"
    )


def _without_folders(message: str, files: Sequence[str]) -> str:
    """The message with the names that were uploaded, not with the places where they lie."""
    for file in files:
        message = message.replace(file, Path(file).name)
    return message
