"""Report text as the field prepares it.

`clean` follows R2Gen's cleaner (Chen et al., EMNLP 2020, `Tokenizer.clean_report_*`): lower case, list numbers and
punctuation dropped, sentences ended by " . ". Two departures, both on purpose: the de-identification mark `XXXX` of
Open-i (`___` of MIMIC-CXR) is dropped, since a policy would learn to write it, and decimal numbers keep their point
("1.4 cm" is not "14 cm").
"""

from __future__ import annotations

import re
from typing import Final

_MARKS: Final = re.compile(r"x-xxxx|\bx{3,}\b(?:'s)?|_+", re.IGNORECASE)
_LIST_NUMBER: Final = re.compile(r"(?:^|(?<=\s))\d+\s?[.)](?=\s|$)")
_SENTENCE_END: Final = re.compile(r"(?<!\d)[.;](?=\s|$)|(?<=\d)\.(?=\s|$)|(?<=[a-z])\.(?=[A-Z])|[?!]|\.{2,}")
_DROPPED: Final = re.compile(r"(?<!\d)\.|\.(?!\d)|(?<!\w)-|-(?!\w)|[^a-z0-9.\s-]")


def clean(text: str) -> str:
    """Report text in the form that policies learn and rewards compare: "the heart is normal . lungs are clear ."

    Empty text stays empty.
    """
    text = _LIST_NUMBER.sub(" ", _MARKS.sub(" ", text))
    sentences = []
    for raw in _SENTENCE_END.split(text):
        lowered = raw.lower().replace("'", "")
        words = _DROPPED.sub(" ", lowered).split()
        if words:
            sentences.append(" ".join(words))
    return " . ".join(sentences) + " ." if sentences else ""


def sentences(cleaned: str) -> list[str]:
    """Sentences of a cleaned text, without their full stops."""
    parts = (part.removesuffix(" .").strip() for part in cleaned.split(" . "))
    return [part for part in parts if part not in ("", ".")]
