"""The labels of reports over a socket: what they say, what is refused, and that clients get them as they do scores."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from protos import reward_pb2, reward_pb2_grpc
from reward_server.aio_client import AsyncRewardClient
from reward_server.client import RewardClient
from reward_server.errors import PairError, RewardError
from reward_server.metrics import Metrics
from reward_server.scorer import Labels, Scorer
from reward_server.security import ephemeral_security
from reward_server.service import Limits
from reward_server.text.labels import BLANK, LABELS, NEGATIVE, POSITIVE, UNCERTAIN
from tests.reward_server.conftest import RunningServer
from tests.reward_server.scripted import ScriptedServer, classes_of, labels
from tests.reward_server.test_batching import Fragile, soon
from tests.reward_server.test_server import Gate, request

Ask = Callable[..., list[Labels]]


def threaded(addresses: Sequence[str], texts: Sequence[str], **options: Any) -> list[Labels]:
    with RewardClient(addresses, **options) as client:
        return client.label(texts)


def asynchronous(addresses: Sequence[str], texts: Sequence[str], **options: Any) -> list[Labels]:
    async def ask() -> list[Labels]:
        async with AsyncRewardClient(addresses, **options) as client:
            return await client.label(texts)

    return asyncio.run(asyncio.wait_for(ask(), 60))


@pytest.fixture(params=[threaded, asynchronous])
def label(request: pytest.FixtureRequest) -> Ask:
    asked: Ask = request.param
    return asked


def label_request(*texts: str) -> reward_pb2.LabelRequest:
    return reward_pb2.LabelRequest(texts=texts)


# --- what they say ----------------------------------------------------------------------------------------------------


def test_labels_over_the_socket_equal_those_in_process(server: RunningServer, scorer: Scorer, label: Ask) -> None:
    texts = ["No pneumothorax.", "", "The heart is enlarged. Possible edema.", "Größe normal — ❤"] * 40
    assert label([server.address], texts, timeout_s=30) == scorer.label(texts)
    assert label([server.address], [], timeout_s=30) == []


def test_a_report_is_labelled_by_what_it_states(client: RewardClient) -> None:
    [found, normal, blank] = client.label(
        ["Mild cardiomegaly. No pneumothorax. Possible pneumonia.", "The lungs are clear. No effusion.", ""]
    )
    said = dict(zip(LABELS, found, strict=True))
    assert (said["Cardiomegaly"], said["Pneumothorax"], said["Pneumonia"]) == (POSITIVE, NEGATIVE, UNCERTAIN)
    assert (said["Fracture"], said["No Finding"]) == (BLANK, BLANK)
    assert dict(zip(LABELS, normal, strict=True))["No Finding"] == POSITIVE
    assert blank == (BLANK,) * 14


def test_every_answer_names_the_backend_and_its_models(server: RunningServer, scorer: Scorer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        answer = reward_pb2_grpc.RewardServiceStub(channel).Label(label_request("No effusion."))
    assert (answer.backend, answer.definition) == ("embedded", "embedded-v1")
    expected = [(model.name, model.sha256) for model in scorer.description.models]
    assert [(model.name, model.sha256) for model in answer.models] == expected


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_bad_text_has_an_error_of_its_own_and_the_others_their_labels() -> None:
    gate, metrics = Gate(), Metrics()
    gate.open.set()
    running = RunningServer(gate, metrics=metrics)
    with grpc.insecure_channel(running.address) as channel:
        answer = reward_pb2_grpc.RewardServiceStub(channel).Label(label_request("a", "explode", "y" * 16_001, "abc"))
    running.stop()
    assert [list(found.classes) for found in answer.labels] == [[1] * 14, [], [], [3] * 14]
    assert [found.error for found in answer.labels] == [
        "",
        "the backend failed on this text: ValueError",
        "text: 16001 characters, the limit is 16000",
        "",
    ]
    count = metrics.registry.get_sample_value
    assert count("lmrrg_reward_texts_total", {"outcome": "labelled"}) == 2
    assert count("lmrrg_reward_texts_total", {"outcome": "error"}) == 2
    assert count("lmrrg_reward_requests_total", {"method": "Label", "status": "OK"}) == 1


def test_too_many_texts_are_refused_by_the_name_of_the_field(server: RunningServer) -> None:
    with (
        grpc.insecure_channel(server.address) as channel,
        pytest.raises(grpc.RpcError, match="texts: 1025 in one request, the limit is 1024") as caught,
    ):
        reward_pb2_grpc.RewardServiceStub(channel).Label(label_request(*["a"] * 1025))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_caller_without_the_token_gets_no_labels(scorer: Scorer) -> None:
    theirs, ours = ephemeral_security()
    running = RunningServer(scorer, security=theirs)
    assert threaded([running.address], ["No effusion."], security=ours) == scorer.label(["No effusion."])
    with pytest.raises(RewardError, match="want a token, and none was given"):
        threaded([running.address], ["No effusion."], security=type(ours)(ca=ours.ca, server_name=ours.server_name))
    running.stop()


# --- beside scores ----------------------------------------------------------------------------------------------------


def test_texts_and_pairs_share_one_queue_and_one_thread() -> None:
    gate, metrics = Gate(), Metrics()
    running = RunningServer(gate, Limits(waiting_pairs=40), metrics=metrics)
    with grpc.insecure_channel(running.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        first = stub.Score.future(request(("", "first")))
        assert gate.entered.wait(10)
        texts = stub.Label.future(label_request(*["ab"] * 20))
        pairs = stub.Score.future(request(*[("", "abc")] * 20))
        more = stub.Label.future(label_request())  # nothing to do is done at once
        assert more.result(10).labels == []
        assert soon(lambda: metrics.registry.get_sample_value("lmrrg_reward_waiting_pairs") == 40)
        with pytest.raises(grpc.RpcError, match="40 pairs wait") as caught:
            stub.Label(label_request("no room"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.open.set()
        assert first.result(10).scores[0].components["length"] == 5
        assert [list(found.classes) for found in texts.result(10).labels] == [[2] * 14] * 20
        assert [score.components["length"] for score in pairs.result(10).scores] == [3.0] * 20
    running.stop()
    assert sum(map(len, gate.labelled)) == 20
    assert sum(map(len, gate.batches)) == 21


def test_callers_of_both_kinds_at_once_get_what_they_asked_for() -> None:
    gate = Gate()  # fails if it is called twice at a time
    gate.open.set()
    running = RunningServer(gate)
    with RewardClient([running.address], timeout_s=30) as client, ThreadPoolExecutor(12) as threads:
        texts = [["x" * (i % 4)] * 70 for i in range(60)]
        labelled = threads.map(client.label, texts)
        scored = threads.map(client.score, [[("", text) for text in part] for part in texts])
        assert list(labelled) == [[(len(part[0]),) * 14] * 70 for part in texts]
        assert list(scored) == [[{"length": len(part[0])}] * 70 for part in texts]
    running.stop()


def test_a_server_that_lost_its_backend_says_so_and_its_clients_turn_to_another() -> None:
    lost, healthy = Fragile(), Fragile()
    one, two = RunningServer(lost), RunningServer(healthy)
    with RewardClient([one.address, two.address], timeout_s=20) as client:
        lost.lost = True
        for _ in range(10):
            assert client.label(["abc"] * 100) == [(3,) * 14] * 100
    one.stop()
    two.stop()


# --- the client's part ------------------------------------------------------------------------------------------------


def test_a_server_that_refuses_for_a_while_is_asked_on(label: Ask) -> None:
    left = iter([grpc.StatusCode.UNAVAILABLE] * 3 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3)

    def answer(asked: reward_pb2.LabelRequest, context: grpc.ServicerContext) -> reward_pb2.LabelResponse:
        if (code := next(left, None)) is not None:
            context.abort(code, "not now")
        return labels(asked)

    with ScriptedServer(label=answer) as server:
        assert label([server.address], ["abc"], timeout_s=30) == [classes_of("abc")]
        assert len(server.requests) == 7


def test_a_stuck_or_missing_server_ends_at_the_deadline(label: Ask) -> None:
    opened = threading.Event()

    def stuck(asked: reward_pb2.LabelRequest, context: grpc.ServicerContext) -> reward_pb2.LabelResponse:
        opened.wait(30)
        return labels(asked)

    with pytest.raises(RewardError, match=r"the labels of 2 texts from 127.0.0.1:9 \(deadline 1 s\): UNAVAILABLE"):
        label(["127.0.0.1:9"], ["a", "b"], timeout_s=1)
    with ScriptedServer(label=stuck) as server:
        start = time.monotonic()
        with pytest.raises(RewardError, match="DEADLINE_EXCEEDED"):
            label([server.address], ["abc"], timeout_s=1)
        assert time.monotonic() - start < 10
        opened.set()


def test_many_texts_go_in_parts_to_several_servers_and_keep_their_order(label: Ask) -> None:
    texts = ["x" * (i % 500) for i in range(2000)]
    with ScriptedServer() as one, ScriptedServer() as two:
        assert label([one.address, two.address], texts, timeout_s=30) == [classes_of(text) for text in texts]
        assert sum(one.requests) + sum(two.requests) == 2000


def test_the_first_text_without_labels_is_named_with_its_reason(label: Ask) -> None:
    def answer(asked: reward_pb2.LabelRequest, context: grpc.ServicerContext) -> reward_pb2.LabelResponse:
        if "bad" in asked.texts:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "text: bad")
        return labels(asked)

    with ScriptedServer(label=answer) as server:
        with pytest.raises(PairError, match="1 of 3 texts have no label; text 1: text: bad"):
            label([server.address], ["a", "bad", "abc"], timeout_s=20)
        with pytest.raises(PairError, match=r"text 0: text: not valid Unicode .*surrogate at character 0"):
            label([server.address], ["\ud800"], timeout_s=20)
        with pytest.raises(PairError, match="text 1: text: must be a string, not NoneType"):
            label([server.address], ["a", None], timeout_s=20)


@pytest.mark.parametrize("classes", [(), (0,) * 13, (0,) * 13 + (4,), (0,) * 13 + (-1,)])
def test_labels_that_cannot_be_are_an_error(label: Ask, classes: tuple[int, ...]) -> None:
    wrong = reward_pb2.LabelResponse(labels=[reward_pb2.TextLabels(classes=classes)])
    with (
        ScriptedServer(label=lambda asked, context: wrong) as server,
        pytest.raises(RewardError, match=r"the labels of 1 texts .*: a text's labels must be 14 classes from 0 to 3"),
    ):
        label([server.address], ["a"], timeout_s=20)
    with (
        ScriptedServer(label=lambda asked, context: labels(label_request("a"))) as server,
        pytest.raises(RewardError, match="1 labels came back for 2 texts"),
    ):
        label([server.address], ["a", "b"], timeout_s=20)


def test_labels_of_other_weights_than_those_of_the_scores_are_refused() -> None:
    def other(asked: reward_pb2.LabelRequest, context: grpc.ServicerContext) -> reward_pb2.LabelResponse:
        answer = labels(asked)
        answer.models[0].sha256 = "bb"
        return answer

    with ScriptedServer(label=other) as server, RewardClient([server.address], timeout_s=20) as client:
        client.score([("r", "a")])
        with pytest.raises(RewardError, match="servers differ"):
            client.label(["a"])
