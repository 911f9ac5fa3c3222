"""What a pair's graphs are and what of them agrees: in process, over a socket, and as the scores have it."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence

import grpc
import pytest

from protos import reward_pb2, reward_pb2_grpc
from reward_server.aio_client import AsyncRewardClient
from reward_server.calls import Checks
from reward_server.client import RewardClient
from reward_server.errors import PairError, RewardError
from reward_server.explanation import Entity, Explanation, Outcome, outcome_of, places
from reward_server.questions import EXPLANATIONS
from reward_server.scorer import Pair, Scorer
from reward_server.scoring import LocalSource
from reward_server.text.explain import explain
from rrg.data.formats.openi import OpeniRecord
from tests.reward_server.conftest import RunningServer

REFERENCE = "The heart is enlarged.  There is a small left pleural effusion at the left base. No pneumothorax."
HYPOTHESIS = "Heart size is normal. Right pleural effusion. No pneumothorax. There is an old rib fracture."


def by_name(graph: Sequence[Entity]) -> dict[str, Entity]:
    return {entity.name: entity for entity in graph}


# --- what is read -----------------------------------------------------------------------------------------------------


def test_statements_are_matched_missed_invented_or_contradicted() -> None:
    found = explain(REFERENCE, HYPOTHESIS)
    reference = {name: outcome_of(one.credit, reference=True) for name, one in by_name(found.reference).items()}
    hypothesis = {name: outcome_of(one.credit, reference=False) for name, one in by_name(found.hypothesis).items()}
    assert reference == {
        "cardiomegaly": Outcome.CONTRADICTED,
        "left effusion": Outcome.MISSED,
        "pneumothorax": Outcome.MATCHED,
    }
    assert hypothesis == {
        "cardiomegaly": Outcome.CONTRADICTED,
        "right effusion": Outcome.INVENTED,
        "pneumothorax": Outcome.MATCHED,
        "fracture": Outcome.INVENTED,
    }


def test_another_name_for_the_same_shadow_is_partly_matched() -> None:
    found = explain("Right lower lobe pneumonia.", "Right lower lobe opacity.")
    [entity], [other] = found.reference, found.hypothesis
    assert outcome_of(entity.credit, reference=True) is Outcome.PARTLY
    assert (entity.credit, entity.counterpart, other.counterpart) == (0.5, 0, 0)
    assert [(one.kind, one.target, one.credit) for one in entity.relations] == [("located_at", "lower lung", 1.0)]


def test_a_statement_made_twice_is_matched_once() -> None:
    found = explain("No pneumothorax.", "No pneumothorax. There is no pneumothorax.")
    assert [one.credit for one in found.hypothesis] == [1.0, 0.0]


def test_what_is_stated_and_denied_at_once_is_contradicted_once() -> None:
    found = explain("There is an effusion.", "There is an effusion. There is no effusion.")
    assert [(one.credit, one.counterpart) for one in found.hypothesis] == [(1.0, 0), (-1.0, 0)]
    assert found.reference[0].credit == 1.0


def test_relations_of_a_matched_statement_are_shared_or_not() -> None:
    found = explain("Small left effusion.", "Large left effusion.")
    assert [one.relations[0].credit for one in (*found.reference, *found.hypothesis)] == [0.0, 0.0]
    assert explain("Small effusion.", "A small effusion.").reference[0].relations[0].credit == 1.0


def test_places_are_those_of_the_report_as_it_was_typed() -> None:
    text = "  No  focal  consolidation... \t The HEART is enlarged , İ edema .\n"
    found = [text[one.start : one.end] for one in explain(text, "").reference]
    assert found == ["consolidation", "enlarged", "edema"]
    assert places("a b a", ["a", "x", "a"]) == [(0, 1), (1, 1), (4, 5)]


def test_blank_reports_have_empty_graphs() -> None:
    assert explain("", " \n") == Explanation((), ())


def test_on_real_reports_every_place_is_in_the_text_and_partners_are_mutual(records: list[OpeniRecord]) -> None:
    reports = [record.sections["findings"] for record in records[:400]]
    for reference, hypothesis in itertools.pairwise(reports):
        found = explain(reference, hypothesis)
        for text, own, other in (
            (reference, found.reference, found.hypothesis),
            (hypothesis, found.hypothesis, found.reference),
        ):
            assert all(text[one.start : one.end].strip() for one in own)
            for one in own:
                assert one.counterpart is None or other[one.counterpart].credit or one.credit < 0


def test_a_copy_is_matched_whole_and_that_is_where_the_graph_score_is_1(
    records: list[OpeniRecord], scorer: Scorer
) -> None:
    reports = [record.sections["findings"] for record in records[:100]]
    pairs = [(reference, other) for reference in reports[:10] for other in (reference, *reports[10:20])]
    for found, score in zip(scorer.explain(pairs), scorer.score(pairs), strict=True):
        entities = (*found.reference, *found.hypothesis)
        whole = all(one.credit == 1 and all(link.credit == 1 for link in one.relations) for one in entities)
        assert whole == math.isclose(score["graph_f1"], 1.0)


# --- over a socket ----------------------------------------------------------------------------------------------------


PAIRS: list[Pair] = [(REFERENCE, HYPOTHESIS), ("", ""), ("Größe normal — ❤ edema", "Edema.")]


def test_explanations_over_the_socket_equal_those_in_process(
    client: RewardClient, server: RunningServer, scorer: Scorer
) -> None:
    async def ask() -> list[Explanation]:
        async with AsyncRewardClient([server.address], timeout_s=30) as asked:
            return await asked.explain(PAIRS)

    assert client.explain(PAIRS) == scorer.explain(PAIRS) == LocalSource(scorer).explain(PAIRS)
    assert asyncio.run(asyncio.wait_for(ask(), 60)) == scorer.explain(PAIRS)


def test_a_pair_that_cannot_be_explained_has_its_reason(server: RunningServer, client: RewardClient) -> None:
    request = reward_pb2.ExplainRequest(
        pairs=[reward_pb2.Pair(hypothesis="y" * 16_001), reward_pb2.Pair(hypothesis="No edema.")]
    )
    with grpc.insecure_channel(server.address) as channel:
        answer = reward_pb2_grpc.RewardServiceStub(channel).Explain(request)
    assert (answer.backend, answer.explanations[0].error) == (
        "embedded",
        "hypothesis: 16001 characters, the limit is 16000",
    )
    assert answer.explanations[1].hypothesis[0].label == "absent"
    with pytest.raises(PairError, match="1 of 1 pairs have no explanation"):
        client.explain([("", "y" * 16_001)])


@pytest.mark.parametrize(
    "entity", [reward_pb2.Entity(credit=2), reward_pb2.Entity(start=3, end=2), reward_pb2.Entity(counterpart=1)]
)
def test_an_answer_that_cannot_be_right_is_refused(entity: reward_pb2.Entity) -> None:
    response = reward_pb2.ExplainResponse(explanations=[reward_pb2.PairExplanation(reference=[entity])])
    with pytest.raises(RewardError, match="entity"):
        Checks().answers(EXPLANATIONS, response, 1)
