"""Sections of MIMIC-CXR reports: MIT-LCP's rules on invented reports."""

from __future__ import annotations

import pytest

from rrg.data.formats.mimic_sections import sections_of, split_sections, usual_name
from rrg.data.study import Report
from tests.data.formats.mimic_fixture import REPORT


def names(text: str) -> list[str]:
    return [section.name for section in split_sections(text)]


def test_a_report_has_its_sections_verbatim() -> None:
    assert sections_of("1", REPORT) == Report(
        findings="The lungs are clear.  Heart size is\n normal.",
        impression="No acute process.",
        indication="___ year old with cough  // infiltrate?",
        comparison="___",
    )
    assert names(REPORT) == ["preamble", "examination", "indication", "comparison", "findings", "impression"]


def test_a_section_starts_where_its_text_does() -> None:
    for section in split_sections(REPORT):
        assert REPORT[section.start :].startswith(section.text)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("IMPRESSION", "impression"),
        ("IMPERSSION", "impression"),
        ("NDICATION", "impression"),  # as MIT-LCP have it
        ("IDICATION", "indication"),
        ("REASON FOR EXAM", "indication"),
        ("FINDINGS/IMPRESSION", "impression"),
        ("WETREAD", "wet read"),
        ("PFI", "history"),
        ("RECOMMENDATION(S)", "recommendations"),
        ("FINAL IMPRESSION", "impression"),  # holds a main name
        ("PORTABLE AP CHEST", "findings"),  # words of a view
        ("PA AND LAT VIEWS", "findings"),
        ("CHEST PORT LINE PLACEMENT", "findings"),
        ("COMPARISON CHEST FILM", "comparison"),  # the main name wins over the view
        ("NOTE", "note"),
    ],
)
def test_headers_have_their_usual_name(header: str, name: str) -> None:
    assert usual_name(header) == name


def test_a_header_starts_a_line_with_a_space_and_is_in_capitals() -> None:
    text = "\n FINDINGS: Lungs: clear.  NOTE: fine.\nIMPRESSION: no space.\n Impression: small letters.\n"
    assert names(text) == ["preamble", "findings"]


def test_the_last_of_two_sections_counts_and_empty_ones_do_not() -> None:
    text = "\n CHEST, TWO VIEWS: \n \n FINDINGS: first\n \n FINDINGS: second\n \n IMPRESSION: \n \n"
    assert sections_of("1", text) == Report(findings="second")


def test_without_findings_and_impression_the_text_after_the_first_blank_line_is_the_last_paragraph() -> None:
    text = "\n INDICATION: cough\n \n The lungs are clear.\n \n Heart normal.\n"
    assert names(text) == ["preamble", "indication", "last_paragraph"]
    assert sections_of("1", text) == Report("The lungs are clear.\n \n Heart normal.", indication="cough")


def test_a_report_without_a_header_gives_its_last_paragraph() -> None:
    text = "WET READ\n \n Lungs clear."
    assert names(text) == ["full report", "last_paragraph"]
    assert sections_of("1", text).findings == "Lungs clear."


def test_with_nothing_else_the_comparison_is_the_report() -> None:
    text = "\n INDICATION: cough\n COMPARISON: None. Lungs clear.\n"
    assert sections_of("1", text) == Report("None. Lungs clear.", indication="cough")


def test_an_impression_alone_does_not_become_the_findings() -> None:
    assert sections_of("1", "\n IMPRESSION: Normal.\n") == Report(impression="Normal.")


def test_history_stands_in_for_a_missing_indication() -> None:
    text = "\n HISTORY: fever\n \n FINDINGS: clear\n"
    assert sections_of("1", text).indication == "fever"


def test_a_report_under_a_wrong_header_is_found_by_its_study_id() -> None:
    text = "\n HISTORY: fever\n \n RECOMMENDATION(S): The lungs are clear.\n \n IMPRESSION: see above\n"
    assert sections_of("50913680", text) == Report("The lungs are clear.", indication="fever")
    assert sections_of("1", text).impression == "see above"


def test_a_report_without_usable_headers_is_cut_out_by_its_study_id() -> None:
    text = "x" * 59 + " Lungs clear. ".ljust(218 - 59) + "signed"
    assert sections_of("56579911", text) == Report("Lungs clear.")


def test_a_report_known_to_hold_no_findings_is_empty() -> None:
    assert sections_of("58235663", REPORT) == Report()
