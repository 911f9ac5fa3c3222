"""The F1 of graphs, worked by hand and against the package."""

from __future__ import annotations

import random
from typing import Any

import pytest
from radgraph.rewards import compute_reward

from reward_server.backends.reference import entities, relations, set_f1
from reward_server.radcliq.radgraph import Entity, Graph, RadGraphF1, graph_f1, to_json
from reward_server.radcliq.radgraph.graph import complete_f1, partial_f1, simple_f1

# "small effusion": small modifies effusion.
EFFUSION = Graph(
    ("small", "left", "effusion", "."),
    (
        Entity(0, 0, "OBS-DP", (("modify", 2),)),
        Entity(1, 1, "ANAT-DP"),
        Entity(2, 2, "OBS-DP", (("located_at", 1),)),
    ),
)


def graph(*found: tuple[str, str], links: dict[int, list[tuple[str, int]]] | None = None) -> Graph:
    """Entities of one word each."""
    return Graph(
        tuple(word for word, _ in found),
        tuple(Entity(i, i, label, tuple((links or {}).get(i, ()))) for i, (_, label) in enumerate(found)),
    )


def test_the_f1_is_the_mean_over_entities_and_relations() -> None:
    # 2 of 3 entities of the reference and 2 of 2 of the hypothesis: F1 2*1*(2/3)/(1+2/3) = 0.8; 1 of 2 relations
    # against 1 of 1: 2/3.
    stated = graph(("left", "ANAT-DP"), ("effusion", "OBS-DP"), links={1: [("located_at", 0)]})
    assert graph_f1(EFFUSION, stated) == RadGraphF1(pytest.approx(0.8), pytest.approx(2 / 3))
    assert graph_f1(EFFUSION, stated).mean == pytest.approx((0.8 + 2 / 3) / 2)


def test_a_relation_counts_only_with_the_labels_of_both_ends() -> None:
    denied = graph(("left", "ANAT-DP"), ("effusion", "OBS-DA"), links={1: [("located_at", 0)]})
    assert graph_f1(EFFUSION, denied).relation == 0


def test_case_matters_and_repetition_does_not() -> None:
    once, upper = graph(("effusion", "OBS-DP")), graph(("Effusion", "OBS-DP"))
    twice = graph(("effusion", "OBS-DP"), ("effusion", "OBS-DP"))
    assert graph_f1(once, upper).entity == 0
    assert graph_f1(once, twice).entity == 1


def test_empty_against_empty_is_0_so_a_copy_without_relations_gets_a_half() -> None:
    assert graph_f1(Graph(), Graph()) == RadGraphF1(0, 0)
    assert graph_f1(Graph(), EFFUSION) == graph_f1(EFFUSION, Graph()) == RadGraphF1(0, 0)
    alone = graph(("effusion", "OBS-DP"))
    assert graph_f1(alone, alone).mean == 0.5
    assert graph_f1(EFFUSION, EFFUSION).mean == 1
    assert simple_f1(Graph(), Graph()) == partial_f1(Graph(), Graph()) == complete_f1(Graph(), Graph()) == 0


def test_the_json_counts_entities_from_1_as_text() -> None:
    assert to_json(EFFUSION) == {
        "text": "small left effusion .",
        "entities": {
            "1": _entity("small", 0, "OBS-DP", [["modify", "3"]]),
            "2": _entity("left", 1, "ANAT-DP", []),
            "3": _entity("effusion", 2, "OBS-DP", [["located_at", "2"]]),
        },
        "data_source": None,
        "data_split": "inference",
    }


def test_random_graphs_get_the_packages_rewards_and_the_references_f1() -> None:
    draw = random.Random(9)
    seen = set()
    for _ in range(2000):
        a, b = _random_graph(draw), _random_graph(draw)
        first, second = to_json(a), to_json(b)
        rewards = (simple_f1(a, b), partial_f1(a, b), complete_f1(a, b))
        assert rewards == pytest.approx(compute_reward(second, first, "all"))
        found = graph_f1(a, b)
        assert found.entity == pytest.approx(set_f1(entities(first), entities(second)))
        assert found.relation == pytest.approx(set_f1(relations(first), relations(second)))
        seen.add(rewards)
    assert len(seen) > 100


def _random_graph(draw: random.Random) -> Graph:
    size = draw.randint(0, 5)
    found = [(draw.choice(("edema", "Edema", "left")), draw.choice(("OBS-DP", "OBS-DA"))) for _ in range(size)]
    links = {
        i: [(draw.choice(("modify", "located_at")), draw.randrange(size)) for _ in range(draw.randint(0, 2))]
        for i in range(size)
    }
    return graph(*found, links=links)


def _entity(tokens: str, place: int, label: str, links: list[list[str]]) -> dict[str, Any]:
    return {"tokens": tokens, "label": label, "start_ix": place, "end_ix": place, "relations": links}
