"""RadGraph's graph of a report, its JSON, and the F1 of two graphs as `CXR-Report-Metric` and `radgraph` define it.

Contract: pure functions without torch. Everything is compared as sets, case-sensitive: a finding that is said twice
counts once. Two empty sets have an F1 of 0 in all of these definitions, so an exact copy gets at most 0.5 from
`graph_f1` where the report has no relations, and 0 where it has no entities, as a blank report does.
Sources: Jain et al. 2021, RadGraph; Yu et al. 2023, `CXR-Report-Metric`; Delbrouck et al. 2022 for the three rewards
of the package `radgraph`.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entity:
    """The words `start` to `end`, both included; `relations`: (type, index of the target among the entities)."""

    start: int
    end: int
    label: str
    relations: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Graph:
    """A report's words and its entities, in the order of the text."""

    tokens: tuple[str, ...] = ()
    entities: tuple[Entity, ...] = ()

    def text(self, entity: Entity) -> str:
        return " ".join(self.tokens[entity.start : entity.end + 1])


@dataclass(frozen=True)
class RadGraphF1:
    """`mean` of the two is RadCliQ's component."""

    entity: float
    relation: float

    @property
    def mean(self) -> float:
        return (self.entity + self.relation) / 2


def to_json(graph: Graph) -> dict[str, object]:
    """The graph as the package `radgraph` writes it: entities are numbered from "1"."""
    entities = {
        str(number): {
            "tokens": graph.text(entity),
            "label": entity.label,
            "start_ix": entity.start,
            "end_ix": entity.end,
            "relations": [[kind, str(target + 1)] for kind, target in entity.relations],
        }
        for number, entity in enumerate(graph.entities, start=1)
    }
    return {"text": " ".join(graph.tokens), "entities": entities, "data_source": None, "data_split": "inference"}


def from_json(found: dict[str, Any]) -> Graph:
    """What `to_json`, or the package `radgraph`, wrote."""
    numbers = {number: index for index, number in enumerate(found["entities"])}
    entities = tuple(
        Entity(
            one["start_ix"],
            one["end_ix"],
            one["label"],
            tuple((kind, numbers[target]) for kind, target in one["relations"]),
        )
        for one in found["entities"].values()
    )
    return Graph(tuple(found["text"].split()), entities)


def graph_f1(reference: Graph, hypothesis: Graph) -> RadGraphF1:
    """F1 of the entities {(words, label)} and of the relations {(source entity, target entity, type)}."""
    return RadGraphF1(
        f1(_labelled(reference), _labelled(hypothesis)), f1(_relations(reference), _relations(hypothesis))
    )


def simple_f1(reference: Graph, hypothesis: Graph) -> float:
    """F1 of the entities {(words, label)}; 0 if a report has none."""
    return f1(_labelled(reference), _labelled(hypothesis))


def partial_f1(reference: Graph, hypothesis: Graph) -> float:
    """F1 of the entities {(words, label, whether it is the source of a relation)}; 0 if a report has none."""
    return f1(_sources(reference), _sources(hypothesis))


def complete_f1(reference: Graph, hypothesis: Graph) -> float:
    """F1 of {(words, label, type, words of the target)}, and {(words, label)} of entities that are no source.

    The words of relations are compared in lower case, those of the other entities as they are. 0 if a report has no
    entities.
    """
    return f1(_facts(reference), _facts(hypothesis))


def f1(expected: Set[object], found: Set[object]) -> float:
    """F1 of two sets; 0 if they have nothing in common, also if both are empty."""
    both = len(expected & found)
    if not both:
        return 0.0
    precision, recall = both / len(found), both / len(expected)
    return 2 * precision * recall / (precision + recall)


def named(graph: Graph, entity: Entity) -> tuple[str, str]:
    """(words, label): what an entity is compared by."""
    return graph.text(entity), entity.label


def relation_of(graph: Graph, source: Entity, kind: str, target: int) -> tuple[tuple[str, str], tuple[str, str], str]:
    """(source, target, type): what a relation is compared by."""
    return named(graph, source), named(graph, graph.entities[target]), kind


def _labelled(graph: Graph) -> frozenset[object]:
    return frozenset(named(graph, entity) for entity in graph.entities)


def _relations(graph: Graph) -> frozenset[object]:
    return frozenset(
        relation_of(graph, entity, kind, target) for entity in graph.entities for kind, target in entity.relations
    )


def _sources(graph: Graph) -> frozenset[object]:
    return frozenset((*named(graph, entity), bool(entity.relations)) for entity in graph.entities)


def _facts(graph: Graph) -> frozenset[object]:
    facts: set[object] = set()
    for entity in graph.entities:
        words, label = named(graph, entity)
        if not entity.relations:
            facts.add((words, label))
        for kind, target in entity.relations:
            facts.add((words.lower(), label, kind, graph.text(graph.entities[target]).lower()))
    return frozenset(facts)
