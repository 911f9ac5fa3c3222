"""Sections of a MIMIC-CXR report: the rules of MIT-LCP, who published the data set.

Rules and facts (header names, study ids): github.com/MIT-LCP/mimic-cxr, `txt/section_parser.py` (`section_text`,
`normalize_section_names`, `custom_mimic_cxr_rules`) and `txt/create_section_files.py`. In short:

- A header is a line that starts with a space and has capitals up to a colon, followed by white space. Text before the
  first header is the `preamble`; a report without a header is one section, `full report`.
- Header names become the usual ones: first by the table (`wetread` is `wet read`, misspellings of `impression` ...;
  their `ndication` is `impression`, and so it is here), then by a main name that they contain, then by words of a view
  ("portable", "pa and lat", ...), which mean `findings`.
- Empty `findings` and `impression` are dropped. Where neither is left, the last section's text after its first blank
  line ("\\n \\n") becomes `last_paragraph`.
- A section that occurs twice counts with its last text.
- Their list of reports by id: for some, the text lies under another header; for some, between two characters; eight
  have none.

`sections_of` goes from there to a `Report`, by the order in which create_section_files.py takes a study's text. It
differs in one point: where it writes one text for a study (impression, else findings, else last paragraph, else
comparison), we keep both sections; the fallbacks and the texts by id become the findings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from rrg.data.study import Report

_HEADER: Final = re.compile(r"\n ([A-Z ()/,-]+):\s")
_BLANK_LINE: Final = "\n \n"
_MAIN: Final = ("impression", "findings", "history", "comparison", "addendum")
_VIEWS: Final = re.compile(
    "chest|portable|pa and lateral|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|frontal view|"
    "pa view|ap view|one view|lateral view|bone window|frontal upright|frontal semi-upright|ribs|pa and lat"
)


def _table(**spellings: str) -> Mapping[str, str]:
    """Header -> usual name, from headers separated by "|" (underscores in a usual name are spaces)."""
    return MappingProxyType(
        {header: name.replace("_", " ") for name, headers in spellings.items() for header in headers.split("|")}
    )


_NAMES: Final = _table(
    preamble="preamble",
    impression="impression|conclusion|findings and impression|findings/impression|findings/ impression|ndication|"
    "impresson|imprression|imoression|impressoin|imprssion|impresion|imperssion|mpression|impession",
    comparison="comparison|comparisons|reference exam|comparison exam|comparison film|comparision|comparsion|"
    "comparrison|comparisions",
    indication="indication|reason for examination|reason for exam|clinical indication|idication",
    findings="findings|chest, two views|finding|findins|findindgs|findgings|findngs|findnings|finidngs|"
    "reference findings",
    examination="examination|exam|type of examination",
    technique="technique",
    history="history|clinical history|clinical information|patient history|pfi",
    notification="notification",
    recommendations="recommendation(s)|recommendations|recommendation",
    addendum="addendum",
    date="date",
    comment="comment",
    wet_read="wet read|wetread",
)

# Study id -> the section that holds the report.
_SECTION_BY_ID: Final[Mapping[str, str]] = MappingProxyType(
    {
        "50913680": "recommendations",
        "59363654": "examination",
        "59279892": "technique",
        "59768032": "recommendations",
        "57936451": "indication",
        "50058765": "indication",
        "53356173": "examination",
        "53202765": "technique",
        "50808053": "technique",
        "51966317": "indication",
        "50743547": "examination",
        "56451190": "note",
        "59067458": "recommendations",
        "59215320": "examination",
        "55124749": "indication",
        "54365831": "indication",
        "59087630": "recommendations",
        "58157373": "recommendations",
        "56482935": "recommendations",
        "58375018": "recommendations",
        "54654948": "indication",
        "55157853": "examination",
        "51491012": "history",
    }
)

# Study id -> first and last character of the report; (0, 0): the whole file holds no finding.
_SPAN_BY_ID: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "50525523": (201, 349),
        "57564132": (233, 554),
        "59982525": (313, 717),
        "53488209": (149, 475),
        "54875119": (234, 988),
        "50196495": (59, 399),
        "56579911": (59, 218),
        "52648681": (292, 631),
        "59889364": (172, 453),
        "53514462": (73, 377),
        "59505494": (59, 450),
        "53182247": (59, 412),
        "51410602": (47, 320),
        "56412866": (522, 822),
        "54986978": (59, 306),
        "59003148": (262, 505),
        "57150433": (61, 394),
        "56760320": (219, 457),
        "59562049": (158, 348),
        "52674888": (145, 296),
        "55258338": (192, 568),
        "59330497": (140, 655),
        "52119491": (179, 454),
        "58235663": (0, 0),
        "50798377": (0, 0),
        "54168089": (0, 0),
        "53071062": (0, 0),
        "56724958": (0, 0),
        "54231141": (0, 0),
        "53607029": (0, 0),
        "52035334": (0, 0),
    }
)


@dataclass(frozen=True)
class Section:
    """A stretch of a report under its usual name; `start` is where its text begins."""

    name: str
    text: str
    start: int


def split_sections(text: str) -> list[Section]:
    """The sections of a report, in order, by the rules of `section_text`; texts keep their white space."""
    headers = list(_HEADER.finditer(text))
    if not headers:
        return _with_last_paragraph([Section("full report", text, 0)])
    ends = [*(header.start() for header in headers[1:]), len(text)]
    sections = [
        Section("preamble", text[: headers[0].start(1)], 0),
        *(Section(usual_name(h.group(1)), text[h.end() : end], h.end()) for h, end in zip(headers, ends, strict=True)),
    ]
    kept = [part for part in sections if part.name not in ("findings", "impression") or part.text.strip()]
    return kept if any(part.name in ("findings", "impression") for part in kept) else _with_last_paragraph(kept)


def _with_last_paragraph(sections: list[Section]) -> list[Section]:
    last = sections[-1]
    head, blank, rest = last.text.partition(_BLANK_LINE)
    if not blank:
        return sections
    paragraph = Section("last_paragraph", rest, last.start + len(head))
    return [*sections[:-1], Section(last.name, head, last.start), paragraph]


def usual_name(header: str) -> str:
    """The usual name of a header; the header in lower case where there is none."""
    name = header.lower().strip()
    if name in _NAMES:
        return _NAMES[name]
    main = next((word for word in _MAIN if word in name), None)
    if main is not None:
        return main
    return "findings" if _VIEWS.search(name) else name


def sections_of(study_id: str, text: str) -> Report:
    """The report of a study (`study_id` without its "s") from its file's text; outer white space is stripped."""
    if study_id in _SPAN_BY_ID:
        start, end = _SPAN_BY_ID[study_id]
        return Report(findings=text[start:end].strip())
    # A dict keeps the last of several sections with one name.
    texts = {part.name: part.text.strip() for part in split_sections(text)}
    by_id = texts.pop(_SECTION_BY_ID[study_id], "") if study_id in _SECTION_BY_ID else None
    indication = texts.get("indication") or texts.get("history", "")
    comparison = texts.get("comparison", "")
    if by_id is not None:
        return Report(by_id, "", indication, comparison)
    findings, impression = texts.get("findings", ""), texts.get("impression", "")
    if findings or impression:
        return Report(findings, impression, indication, comparison)
    if "last_paragraph" in texts:
        return Report(texts["last_paragraph"], "", indication, comparison)
    return Report(findings=comparison, indication=indication)
