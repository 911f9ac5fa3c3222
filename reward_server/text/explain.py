"""The statements of two reports as graphs, and which agree: the matching of `graph_f1`, seen from each statement.

Contract: pure function of the texts. A statement's credit is what `graph.match` gave it; one of the hypothesis that
found no partner and says the opposite of the reference has -1, as it costs there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from reward_server.explanation import Entity, Explanation, Relation, places
from reward_server.text.graph import agreement, match
from reward_server.text.statements import Statement, read_statements
from reward_server.text.words import sentences, words

_SIDES: Mapping[str, str] = MappingProxyType({"": "", "left": "left ", "right": "right ", "both": "bilateral "})


_Credit = tuple[float, int | None]  # and the index of the partner


@dataclass(frozen=True)
class _Placed:
    """A statement and the characters [start, end) of the report that carry its status."""

    statement: Statement
    start: int
    end: int


def explain(reference: str, hypothesis: str) -> Explanation:
    """Both graphs."""
    expected, stated = [*_placed(reference)], [*_placed(hypothesis)]
    of_expected, of_stated = _credits([one.statement for one in expected], [one.statement for one in stated])
    return Explanation(_entities(expected, of_expected, stated), _entities(stated, of_stated, expected))


def _placed(report: str) -> Iterator[_Placed]:
    """The statements of all sentences, with their places in the report."""
    split = sentences(report)
    tokens = iter(places(report, [token for sentence in split for token in sentence.split(" ")]))
    for sentence in split:
        at = _characters(sentence, tokens)
        found = words(sentence)
        for statement in read_statements(found):
            first, last = found[statement.words[0]], found[statement.words[-1]]
            yield _Placed(statement, at[first.start], at[last.end - 1] + 1)


def _characters(sentence: str, tokens: Iterator[tuple[int, int]]) -> list[int]:
    """The place in the report of every character of a sentence in lower case; takes the sentence's tokens."""
    at: list[int] = []
    for token in sentence.split(" "):
        if at:
            at.append(at[-1] + 1)  # the space
        start, _ = next(tokens)
        at += [place for place, letter in enumerate(token, start) for _ in letter.lower()]  # "İ" becomes two
    return at


def _credits(expected: Sequence[Statement], stated: Sequence[Statement]) -> tuple[list[_Credit], list[_Credit]]:
    """Of every statement of both reports."""
    none: _Credit = (0.0, None)
    of_expected: dict[int, _Credit] = {}
    of_stated: dict[int, _Credit] = {}
    for pair in match(expected, stated):
        for _ in range(pair.count):
            first = next(i for i, one in enumerate(expected) if one == pair.reference and i not in of_expected)
            second = next(i for i, one in enumerate(stated) if one == pair.hypothesis and i not in of_stated)
            of_expected[first], of_stated[second] = (pair.credit, second), (pair.credit, first)
    for i, one in enumerate(stated):
        opposite = next((j for j, other in enumerate(expected) if agreement(other, one) < 0), None)
        if i not in of_stated and opposite is not None:
            of_stated[i] = (-1.0, opposite)
    return (
        [of_expected.get(i, none) for i in range(len(expected))],
        [of_stated.get(i, none) for i in range(len(stated))],
    )


def _entities(own: Sequence[_Placed], credits: Sequence[_Credit], others: Sequence[_Placed]) -> tuple[Entity, ...]:
    made = []
    for one, (credit, partner) in zip(own, credits, strict=True):
        statement = one.statement
        shared = others[partner].statement if partner is not None else None
        relations = [
            Relation(kind, target, "", float(shared is not None and target in theirs))
            for kind, targets, theirs in (
                ("located_at", statement.anatomy, shared.anatomy if shared else ()),
                ("modify", statement.modifiers, shared.modifiers if shared else ()),
            )
            for target in sorted(targets)
        ]
        name = f"{_SIDES[statement.side]}{statement.concept}"
        made.append(Entity(name, statement.status.value, one.start, one.end, credit, partner, tuple(relations)))
    return tuple(made)
