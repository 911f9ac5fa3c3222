"""A generated report against its reference: which findings both state, which are missed, which invented, and where.

Contract: both texts are read by the lexicon of `rrg.data.mentions`, which knows positive findings only: what a report
denies, and what the lexicon has no words for, is not marked. The marks compare the two texts; finding F1 in the tables
counts against the data set's codes where it has some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from rrg.data.mentions import Mention, findings_in, mentions_in, region_sentences
from rrg.data.sections import clean, sentences

Mark = Literal["matched", "missed", "invented"]


@dataclass(frozen=True)
class Piece:
    """Part of a sentence; one with a mark states `findings`, which the mark is about."""

    text: str
    mark: Mark | None = None
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sentence:
    """A sentence in pieces, and the regions that it is about."""

    pieces: tuple[Piece, ...]
    regions: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Both texts, cleaned and marked, and the findings by mark."""

    reference: tuple[Sentence, ...]
    hypothesis: tuple[Sentence, ...]
    matched: tuple[str, ...]
    missed: tuple[str, ...]
    invented: tuple[str, ...]


def compare_texts(reference: str, hypothesis: str) -> Comparison:
    """The two reports of one study, marked."""
    true, stated = findings_in(reference), findings_in(hypothesis)
    return Comparison(
        reference=_marked(reference, stated, "missed"),
        hypothesis=_marked(hypothesis, true, "invented"),
        matched=tuple(sorted(true & stated)),
        missed=tuple(sorted(true - stated)),
        invented=tuple(sorted(stated - true)),
    )


def _marked(text: str, others: AbstractSet[str], alone: Mark) -> tuple[Sentence, ...]:
    """The sentences of a text; findings of it that are not in `others` get the mark `alone`."""
    return tuple(
        Sentence(tuple(_pieces(sentence, others, alone)), tuple(region_sentences(sentence)))
        for sentence in sentences(clean(text))
    )


def _pieces(sentence: str, others: AbstractSet[str], alone: Mark) -> Iterator[Piece]:
    done = 0
    for group in _overlapping(mentions_in(sentence)):
        start, end = group[0].start, max(one.end for one in group)
        if done < start:
            yield Piece(sentence[done:start])
        # Of phrases that share words one mark is shown: what the other text lacks.
        found = {one.finding for one in group}
        lacking = found - others
        yield Piece(sentence[start:end], alone if lacking else "matched", tuple(sorted(lacking or found)))
        done = end
    if done < len(sentence):
        yield Piece(sentence[done:])


def _overlapping(mentions: Sequence[Mention]) -> list[list[Mention]]:
    """Mentions that share characters, together; in the order of the text."""
    groups: list[list[Mention]] = []
    for one in sorted(mentions, key=lambda one: (one.start, one.end)):
        if groups and one.start < max(other.end for other in groups[-1]):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups
