"""Which entities and relations two RadGraph graphs share: the sets of `graph_f1`, seen from each entity.

Contract: pure function. An entity is matched where the other graph has one with the same words and label, a relation
where the other graph has one of its kind between such entities.
"""

from __future__ import annotations

from reward_server.explanation import Entity, Explanation, Relation, places
from reward_server.radcliq.radgraph.graph import Graph, named, relation_of


def explain(reference: str, hypothesis: str, expected: Graph, stated: Graph) -> Explanation:
    """Both graphs; the texts are those that they were read from."""
    return Explanation(_entities(reference, expected, stated), _entities(hypothesis, stated, expected))


def _entities(report: str, graph: Graph, other: Graph) -> tuple[Entity, ...]:
    at = places(report, graph.tokens)
    theirs = {named(other, one): index for index, one in reversed([*enumerate(other.entities)])}
    shared = {relation_of(other, one, *link) for one in other.entities for link in one.relations}
    made = []
    for one in graph.entities:
        name, label = named(graph, one)
        relations = tuple(
            Relation(relation[2], *relation[1], float(relation in shared))
            for relation in (relation_of(graph, one, *link) for link in one.relations)
        )
        partner = theirs.get((name, label))
        credit = float(partner is not None)
        made.append(Entity(name, label, at[one.start][0], at[one.end][1], credit, partner, relations))
    return tuple(made)
