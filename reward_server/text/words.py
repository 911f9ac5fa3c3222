"""Sentences and words of a report, with their places in the text.

Contract: pure functions of the text. Everything later is computed a sentence at a time, because the order of the
sentences of a report carries no meaning and because sentences repeat, so that their results can be cached.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# A full stop ends a sentence unless a digit follows at once (1.5 cm).
_SENTENCE_END = re.compile(r"(?:[.!?]+(?=\s|$|[A-Z])|\n+)")
_LONGEST = 100
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:\.\d+)?|[,;:/()]")
_IRREGULAR = {
    "pneumothoraces": "pneumothorax",
    "hydropneumothoraces": "hydropneumothorax",
    "vertebrae": "vertebra",
    "apices": "apex",
    "hila": "hilum",
    "bronchi": "bronchus",
    "bullae": "bulla",
    "pleurae": "pleura",
    "sulci": "sulcus",
    "sequelae": "sequela",
    "foci": "focus",
    "bases": "base",
    "atria": "atrium",
    "pancreas": "pancreas",
}
# Endings that look like a plural and are none.
_NO_PLURAL = ("ss", "us", "is", "xs")


@dataclass(frozen=True)
class Word:
    """A word or a punctuation mark: its base form and its place [start, end) in the sentence's text."""

    base: str
    start: int
    end: int


def base_form(word: str) -> str:
    """Singular of a lower-case English noun by spelling alone; other words come back as they are."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 3 or not word.endswith("s") or word.endswith(_NO_PLURAL):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "shes", "ches")):
        return word[:-2]
    return word[:-1]


def sentences(text: str) -> list[str]:
    """The sentences of a report with single spaces, without their final marks; empty ones are left out.

    More than `_LONGEST` words without an end are cut there, so that no text takes long to read.
    """
    found = []
    for piece in _SENTENCE_END.split(text):
        spaced = piece.split()
        parts = (" ".join(spaced[start : start + _LONGEST]) for start in range(0, len(spaced), _LONGEST))
        found += [part for part in parts if re.search(r"\w", part)]
    return found


def words(sentence: str) -> list[Word]:
    """Words and clause marks of a sentence; hyphens separate words."""
    return [Word(base_form(match[0]), match.start(), match.end()) for match in _WORD.finditer(sentence.lower())]
