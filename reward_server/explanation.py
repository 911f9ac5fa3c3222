"""What a pair's graph component was computed from: both graphs, and which of their parts agree.

Contract: plain records and pure functions, the same for every backend. An explanation quotes the reports: it is as
private as they are. Places are characters of the report as it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from reward_server.errors import PairError


class Outcome(Enum):
    """What became of an entity or relation; the value names it for people."""

    MATCHED = "matched"
    PARTLY = "partly matched"
    MISSED = "missed"
    INVENTED = "invented"
    CONTRADICTED = "contradicted"


@dataclass(frozen=True)
class Relation:
    """`kind` is "located_at", "modify" or "suggestive_of"; `credit` is 1 where the other report has it too, else 0.

    `target` are words, with the label of their entity where they are one (RadGraph).
    """

    kind: str
    target: str
    target_label: str
    credit: float


@dataclass(frozen=True)
class Entity:
    """A node of a report's graph.

    RadGraph: `name` is its words, `label` as "OBS-DP". `embedded`: `name` is the finding with its side, `label` is
    "present", "absent" or "uncertain", and [start, end) are the words that carry it. `credit` says how far the
    other report says the same: 1 the same, 0 nothing of it, below 0 the opposite. `counterpart` is the index of the
    other graph's entity that gave it.
    """

    name: str
    label: str
    start: int
    end: int
    credit: float
    counterpart: int | None
    relations: tuple[Relation, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """The entities of both reports, in the order of their texts."""

    reference: tuple[Entity, ...]
    hypothesis: tuple[Entity, ...]


Explained = Explanation | PairError


def outcome_of(credit: float, *, reference: bool) -> Outcome:
    """What `credit` means for something that stands in the reference, or else in the hypothesis."""
    if credit == 0:
        return Outcome.MISSED if reference else Outcome.INVENTED
    if credit < 0:
        return Outcome.CONTRADICTED
    return Outcome.MATCHED if credit == 1 else Outcome.PARTLY


def places(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Where the tokens, which stand in the text in this order, begin and end; one that is not in it has no length."""
    found = []
    cursor = 0
    for token in tokens:
        start = text.find(token, cursor)
        if start < 0:
            found.append((cursor, cursor))
            continue
        cursor = start + len(token)
        found.append((start, cursor))
    return found
