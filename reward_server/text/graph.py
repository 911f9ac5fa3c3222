"""Agreement of two reports' statements: an F1 over entities and relations after RadGraph's, with the holes closed.

Contract: pure functions in [0, 1]; 1 for equal statements. Differences from RadGraph F1:

- Statements are matched one to one (multisets), so saying one twice does not pay.
- The side is part of a finding: left for right gets nothing, a missing side half.
- A contradiction (present against absent, "the lungs are clear" against an opacity) costs as much as a match gains,
  also when the hypothesis says the right thing elsewhere.
- What is present weighs more than what is absent, which most reports list alike.
- Relations (`located_at`, `modify`) count within their matched statement, a quarter of an entity each.
- Empty against empty is 1, so that an exact copy always gets 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reward_server.text.ontology import FAMILY_OF, GENERAL_OF
from reward_server.text.statements import INCOMPLETE, Statement, Status

_RELATION_WEIGHT = 0.25
_SURENESS = {Status.PRESENT: 1.0, Status.UNCERTAIN: 0.5}
_WEIGHTS = {Status.PRESENT: 2.0, Status.UNCERTAIN: 1.0, Status.ABSENT: 1.0}


def graph_f1(reference: Sequence[Statement], hypothesis: Sequence[Statement]) -> float:
    """F1 of the hypothesis' statements against the reference's, in [0, 1]; higher is better."""
    total = sum(map(_mass, reference)) + sum(map(_mass, hypothesis))
    if not total:
        return 1.0
    gained = 0.0
    left = Counter(hypothesis)
    for pair in match(reference, hypothesis):
        left[pair.hypothesis] -= pair.count
        weight = _weight(pair.reference) + _weight(pair.hypothesis)
        shared = 2 * _RELATION_WEIGHT * _shared(pair.reference, pair.hypothesis)
        gained += pair.count * (pair.credit * weight + shared)
    expected = set(reference)
    for statement, count in left.items():
        if count and any(agreement(other, statement) < 0 for other in expected):
            gained -= count * 2 * _weight(statement)
    return min(1.0, max(0.0, gained / total))


def positive_f1(reference: Sequence[Statement], hypothesis: Sequence[Statement]) -> float:
    """F1 of the findings that are there, with their side (uncertain ones weigh half); 1 if neither report has any, 0 if
    only one has.

    A finding that the hypothesis both states and denies, and the reference does not, earns nothing.
    """
    expected = [s for s in reference if s.positive]
    stated = [s for s in hypothesis if s.positive]
    if not expected and not stated:
        return 1.0
    denied = _denied(hypothesis) - _denied(reference)
    found = sum(
        pair.count * pair.credit * (_SURENESS[pair.reference.status] + _SURENESS[pair.hypothesis.status])
        for pair in match(expected, stated)
        if pair.reference.concept == pair.hypothesis.concept and pair.hypothesis.concept not in denied
    )
    return found / sum(_SURENESS[s.status] for s in (*expected, *stated))


@dataclass(frozen=True)
class Matched:
    """`count` statements of the reference matched with as many of the hypothesis; `credit` in [-1, 1]."""

    credit: float
    reference: Statement
    hypothesis: Statement
    count: int


def match(reference: Sequence[Statement], hypothesis: Sequence[Statement]) -> list[Matched]:
    """Matches the statements one to one, the best first, contradictions last."""
    expected, stated = Counter(reference), Counter(hypothesis)
    candidates = [(credit, a, b) for a in expected for b in stated if (credit := agreement(a, b))]
    # Of equal credits those that share more; the sort is stable, so the order of the reports decides what remains.
    candidates.sort(key=lambda candidate: (-candidate[0], -_shared(candidate[1], candidate[2])))
    pairs = []
    for credit, a, b in candidates:
        count = min(expected[a], stated[b])
        if count:
            expected[a] -= count
            stated[b] -= count
            pairs.append(Matched(credit, a, b, count))
    return pairs


def agreement(a: Statement, b: Statement) -> float:
    """How far two statements say the same: 1 the same, 0 unrelated, -1 the opposite."""
    opposite = {a.status, b.status} == {Status.PRESENT, Status.ABSENT}
    if a.concept == b.concept:
        if opposite:
            return -1.0
        return _side_agreement(a.side, b.side) * (1.0 if a.status is b.status else 0.5)
    if _general(a, b) or _general(b, a):
        if opposite:
            return -1.0
        return 0.5 if a.status is b.status is Status.ABSENT else 0.0
    family = FAMILY_OF.get(a.concept)
    if family is not None and family == FAMILY_OF.get(b.concept) and not opposite:
        return 0.5 * _side_agreement(a.side, b.side)
    return 0.0


def _general(a: Statement, b: Statement) -> bool:
    """Whether `b` is a general statement about what `a` is a case of."""
    return GENERAL_OF.get(a.concept) == b.concept


def _side_agreement(a: str, b: str) -> float:
    if a == b:
        return 1.0
    return 0.0 if {a, b} == {"left", "right"} else 0.5


def _denied(statements: Sequence[Statement]) -> set[str]:
    return {s.concept for s in statements if s.status is Status.ABSENT}


def _weight(statement: Statement) -> float:
    if not statement.specific and statement.concept != INCOMPLETE and statement.status is Status.PRESENT:
        return 0.5  # "the silhouette is stable"
    return _WEIGHTS[statement.status]


def _mass(statement: Statement) -> float:
    return _weight(statement) + _RELATION_WEIGHT * (len(statement.anatomy) + len(statement.modifiers))


def _shared(a: Statement, b: Statement) -> int:
    return len(a.anatomy & b.anatomy) + len(a.modifiers & b.modifiers)
