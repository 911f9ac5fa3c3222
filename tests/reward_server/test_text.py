"""Reading of single sentences, and the pure scores."""

from __future__ import annotations

import pytest

from reward_server.text.bleu import bleu2
from reward_server.text.form import length, repetition
from reward_server.text.labels import LABELS, label_vector
from reward_server.text.statements import INCOMPLETE, read_statements
from reward_server.text.words import sentences, words


def read(sentence: str) -> set[tuple[str, str, str]]:
    return {(s.concept, s.status.value, s.side) for s in read_statements(words(sentence))}


@pytest.mark.parametrize(
    "sentence",
    [
        "The heart is normal in size",
        "Heart size within normal limits",
        "No cardiomegaly",
        "The heart is not enlarged",
        "Cardiac silhouette is unremarkable",
    ],
)
def test_a_normal_heart_is_the_same_statement_in_any_wording(sentence: str) -> None:
    assert read(sentence) == {("cardiomegaly", "absent", "")}


@pytest.mark.parametrize(
    ("sentence", "statements"),
    [
        ("Mild cardiomegaly", {("cardiomegaly", "present", "")}),
        ("The heart is mildly enlarged", {("cardiomegaly", "present", "")}),
        ("Stable cardiomediastinal silhouette", {("stable cardiomediastinum", "present", "")}),
        (
            "No focal consolidation, pleural effusion, or pneumothorax",
            {("consolidation", "absent", ""), ("effusion", "absent", ""), ("pneumothorax", "absent", "")},
        ),
        (
            "Left lower lobe opacity and small right pleural effusion",
            {("opacity", "present", "left"), ("effusion", "present", "right")},
        ),
        ("Lungs are clear without infiltrate", {("lung abnormality", "absent", ""), ("consolidation", "absent", "")}),
        ("Pneumothorax is not seen", {("pneumothorax", "absent", "")}),
        (
            "No pneumothorax is seen and the heart is enlarged",
            {("pneumothorax", "absent", ""), ("cardiomegaly", "present", "")},
        ),
        ("Pneumonia cannot be excluded", {("pneumonia", "uncertain", "")}),
        ("Scarring or atelectasis", {("scar", "uncertain", ""), ("atelectasis", "uncertain", "")}),
        (
            "Opacities in the left base may represent pneumonia",
            {("opacity", "present", "left"), ("pneumonia", "uncertain", "")},
        ),
        ("Bibasilar atelectasis", {("atelectasis", "present", "both")}),
        ("Lung volumes are low", {("hypoinflation", "present", "")}),
        ("The aorta is calcified", {("atherosclerosis", "present", "")}),
        ("No acute bony abnormality", {("bone abnormality", "absent", "")}),
        ("Normal heart size and tortuous aorta", {("cardiomegaly", "absent", ""), ("tortuous aorta", "present", "")}),
        ("No focal is seen", {(INCOMPLETE, "absent", "")}),
        ("The patient was shielded", set()),
    ],
)  # fmt: skip
def test_a_sentence_gives_its_statements(sentence: str, statements: set[tuple[str, str, str]]) -> None:
    assert read(sentence) == statements


def test_a_stable_silhouette_is_no_positive_finding() -> None:
    found = read_statements(words("The cardiomediastinal silhouette is stable"))
    assert not any(statement.positive for statement in found)
    assert dict(zip(LABELS, label_vector(found), strict=True))["Enlarged Cardiomediastinum"] == 0


def test_no_finding_is_labelled_only_where_nothing_is_found() -> None:
    def no_finding(sentence: str) -> float:
        return label_vector(read_statements(words(sentence)))[LABELS.index("No Finding")]

    assert no_finding("The lungs are clear") == 1
    assert no_finding("Degenerative changes of the spine") == 0
    assert no_finding("Possible pneumonia") == 0
    assert no_finding("") == 0


def test_decimal_points_and_double_marks_do_not_make_sentences() -> None:
    assert sentences("A 1.5 cm nodule.. No effusion.\n\nStable. ") == ["A 1.5 cm nodule", "No effusion", "Stable"]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "value"),
    [
        ("a b c", "a b d", (2 / 3 * 1 / 2) ** 0.5),
        ("a b", "b a", 0.1**0.5),
        ("a b", "c d", 0.0),
        ("a b c d", "a b", 2.718281828459045**-1),
        ("A. b", "a. B", 1.0),
        ("a  b", "a b", (1.0 * 0.1) ** 0.5 * 2.718281828459045**-0.5),
        ("a", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_bleu2_is_the_canonical_one(reference: str, hypothesis: str, value: float) -> None:
    assert bleu2(reference, hypothesis) == pytest.approx(value, abs=1e-12)


def test_repetition_and_length_are_measured_against_the_reference() -> None:
    text = "The lungs are clear. There is no pleural effusion."
    assert repetition(text, text) == repetition(text * 3, text * 3) == 0
    assert repetition(text, text + " " + text) > 0.3
    assert length(text, text) == 0
    assert length(text, " ".join([text] * 4)) > 0.3
    assert length(text, "") > 0.3
