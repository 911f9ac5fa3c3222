"""Finds the phrases of the vocabulary in a sentence.

Contract: pure functions of the sentence's words and the read-only vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

from reward_server.text import vocabulary
from reward_server.text.words import Word


class Kind(Enum):
    """What role a phrase plays in a clause."""

    FINDING = auto()  # an abnormality, or a device
    ABNORMALITY = auto()  # a general word for one ("abnormality", "disease"), made specific by its anatomy
    ANATOMY = auto()
    SIDE = auto()  # value: left, right, both; may come with an anatomy ("bibasilar": both, lung base)
    MODIFIER = auto()
    CHANGE = auto()  # "stable", "unchanged": neither normal nor abnormal
    NORMAL = auto()
    ENLARGED = auto()  # words whose finding depends on the anatomy: enlarged, widened, calcified, elevated, ...
    CALCIFIED = auto()
    ELEVATED = auto()
    LOW = auto()
    BORDERLINE = auto()
    NO = auto()  # negates what follows
    NOT_SEEN = auto()  # negates what stands before
    MAYBE = auto()  # makes uncertain what follows
    MAYBE_BEFORE = auto()  # makes uncertain what stands before
    EITHER = auto()  # "or", "versus": makes both uncertain when they are not negated
    BREAK = auto()  # ends the reach of every cue
    PLACE = auto()  # in, of, at: binds a finding to the anatomy after it
    FUNCTION = auto()  # words without content


@dataclass(frozen=True)
class Mention:
    """A phrase of the vocabulary at words [start, end) of a sentence."""

    kind: Kind
    value: str
    start: int
    end: int


def _entries(kind: Kind, table: str) -> Iterator[tuple[tuple[str, ...], tuple[Kind, str]]]:
    for line in table.replace("\n  ", " ").strip().splitlines():
        value, _, phrases = line.partition(":")
        for phrase in phrases.split("|"):
            yield tuple(phrase.split()), (kind, value)


def _build() -> Mapping[tuple[str, ...], tuple[Kind, str]]:
    # A phrase in two tables keeps its meaning in the later one.
    tables = [(Kind[name], table) for name, table in vocabulary.CUES.items()]
    tables += [
        (Kind.MODIFIER, vocabulary.MODIFIERS),
        (Kind.ANATOMY, vocabulary.ANATOMY),
        (Kind.FINDING, vocabulary.FINDINGS),
        (Kind.SIDE, vocabulary.SIDES),
    ]
    return MappingProxyType(dict(entry for kind, table in tables for entry in _entries(kind, table)))


PHRASES = _build()
_LONGEST = max(len(phrase) for phrase in PHRASES)


def find_mentions(sentence: Sequence[Word]) -> list[Mention]:
    """The phrases from left to right, the longest at every place; words outside of the vocabulary are passed over."""
    bases = [word.base for word in sentence]
    mentions: list[Mention] = []
    start = 0
    while start < len(bases):
        for length in range(min(_LONGEST, len(bases) - start), 0, -1):
            entry = PHRASES.get(tuple(bases[start : start + length]))
            if entry is not None:
                mentions.append(Mention(*entry, start, start + length))
                start += length
                break
        else:
            start += 1
    return mentions


def starts_break(sentence: Sequence[Word], start: int) -> bool:
    """Whether a phrase that ends a clause begins at word `start`."""
    bases = [word.base for word in sentence[start : start + _LONGEST]]
    return any(PHRASES.get(tuple(bases[:n]), (None, ""))[0] is Kind.BREAK for n in range(1, len(bases) + 1))
