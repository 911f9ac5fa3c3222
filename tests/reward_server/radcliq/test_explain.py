"""What of two RadGraph graphs agrees."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reports import Pair
from reward_server.backends import create_scorer
from reward_server.explanation import Entity
from reward_server.radcliq.radgraph import graph
from reward_server.radcliq.radgraph.explain import explain
from reward_server.radcliq.radgraph.graph import Graph, from_json, to_json
from reward_server.scorer import ScorerOptions

REFERENCE, HYPOTHESIS = "Small left effusion.", "Left effusion .  no edema"


def node(start: int, label: str, *relations: tuple[str, int]) -> graph.Entity:
    return graph.Entity(start, start, label, relations)


EXPECTED = Graph(
    ("Small", "left", "effusion", "."),
    (node(0, "OBS-DP", ("modify", 2)), node(1, "ANAT-DP"), node(2, "OBS-DP", ("located_at", 1))),
)
STATED = Graph(
    ("Left", "effusion", ".", "no", "edema"),
    (node(0, "ANAT-DP"), node(1, "OBS-DP", ("located_at", 0)), node(4, "OBS-DA")),
)


def test_entities_agree_in_words_and_label_and_relations_in_both_ends() -> None:
    found = explain(REFERENCE, HYPOTHESIS, EXPECTED, STATED)
    assert [(one.name, one.credit, one.counterpart) for one in found.reference] == [
        ("Small", 0.0, None),
        ("left", 0.0, None),  # case counts, as in RadGraph F1
        ("effusion", 1.0, 1),
    ]
    assert [(one.label, one.credit) for one in found.hypothesis] == [("ANAT-DP", 0.0), ("OBS-DP", 1.0), ("OBS-DA", 0.0)]
    assert found.reference[2].relations[0].credit == 0.0  # "left" is not "Left"
    assert [HYPOTHESIS[one.start : one.end] for one in found.hypothesis] == ["Left", "effusion", "edema"]


def test_a_graph_outlives_its_json() -> None:
    assert from_json(to_json(EXPECTED)) == EXPECTED


@pytest.fixture(scope="module", params=["published", "reference"])
def found(request: pytest.FixtureRequest, mini_weights: Path, pairs: list[Pair]) -> tuple[list[object], list[object]]:
    scorer = create_scorer(ScorerOptions(request.param, weights=str(mini_weights)))
    return scorer.explain(pairs[:12]), scorer.score(pairs[:12])


def test_the_parts_that_agree_give_the_f1_of_the_score(found: tuple[list, list]) -> None:  # type: ignore[type-arg]
    for explanation, score in zip(*found, strict=True):
        sides = explanation.reference, explanation.hypothesis
        assert f1(*({(one.name, one.label): one.credit for one in side} for side in sides)) == pytest.approx(
            score["radgraph_entity"]
        )
        assert f1(*(links(side) for side in sides)) == pytest.approx(score["radgraph_relation"])


def links(side: tuple[Entity, ...]) -> dict[object, float]:
    return {
        (one.name, one.label, link.kind, link.target, link.target_label): link.credit
        for one in side
        for link in one.relations
    }


def f1(reference: dict[object, float], hypothesis: dict[object, float]) -> float:
    """Of two sets whose members know whether the other has them."""
    if not sum(reference.values()):
        return 0.0
    recall, precision = (sum(side.values()) / len(side) for side in (reference, hypothesis))
    return 2 * precision * recall / (precision + recall)


def test_both_backends_explain_alike(mini_weights: Path, pairs: list[Pair]) -> None:
    options = [ScorerOptions(name, weights=str(mini_weights)) for name in ("published", "reference")]
    one, other = (create_scorer(option).explain(pairs[:8]) for option in options)
    assert one == other
