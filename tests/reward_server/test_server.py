"""The server over a real socket: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import reward_pb2, reward_pb2_grpc
from reward_server.client import RewardClient
from reward_server.errors import RewardSetupError
from reward_server.scorer import Description, ModelFile, Pair, Scorer
from reward_server.security import ephemeral_security
from reward_server.server import SERVICE, RewardServer
from reward_server.service import Limits
from reward_server.text.encoder import model_folder
from tests.reward_server.conftest import RunningServer

PAIR = ("No pneumothorax.", "There is no pneumothorax.")


class Gate:
    """A scorer of the tests that holds every batch until it is let through; a score is the hypothesis' length, and so
    is every label. It asserts that it does one thing at a time."""

    description = Description("gate", "gate-v1", "length", ("length",), (ModelFile("ruler", "ab" * 32),), {})

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[Pair]] = []
        self.labelled: list[list[str]] = []
        self._alone = threading.Lock()

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        self.batches.append(list(pairs))
        self._pass()
        if any(hypothesis == "explode" for _, hypothesis in pairs):
            raise ValueError("the text is explode")
        return [{"length": math.nan if hypothesis == "nan" else len(hypothesis)} for _, hypothesis in pairs]

    def label(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        self.labelled.append(list(texts))
        self._pass()
        if "explode" in texts:
            raise ValueError("the text is explode")
        return [(len(text),) * 14 for text in texts]

    def _pass(self) -> None:
        assert self._alone.acquire(blocking=False)
        self.entered.set()
        assert self.open.wait(30)
        self._alone.release()

    def statistics(self) -> dict[str, float]:
        return {"batches": len(self.batches)}


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated(gate: Gate) -> Iterator[RunningServer]:
    running = RunningServer(gate, Limits(waiting_pairs=40))
    yield running
    gate.open.set()
    running.stop()


@pytest.fixture
def stub(server: RunningServer) -> Iterator[reward_pb2_grpc.RewardServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield reward_pb2_grpc.RewardServiceStub(channel)


def request(*pairs: Pair, components: Sequence[str] = ()) -> reward_pb2.ScoreRequest:
    return reward_pb2.ScoreRequest(
        pairs=[reward_pb2.Pair(reference=a, hypothesis=b) for a, b in pairs], components=components
    )


def test_scores_over_the_socket_equal_those_in_process(client: RewardClient, scorer: Scorer) -> None:
    pairs = [PAIR, ("", ""), ("The heart is enlarged.", "Größe normal — ❤"), ("a", "")] * 40
    assert client.score(pairs) == scorer.score(pairs)
    assert client.score([]) == []


def test_many_callers_at_once_get_their_own_scores(client: RewardClient, scorer: Scorer) -> None:
    sets = [[(f"{i} opacities.", f"{j} opacities.") for j in range(5)] for i in range(12)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(client.score, sets))
    assert answers == [scorer.score(pairs) for pairs in sets]


def test_only_the_wanted_components_come_back(stub: reward_pb2_grpc.RewardServiceStub) -> None:
    answer = stub.Score(request(PAIR, components=["bleu2", "embedded"]))
    assert set(answer.scores[0].components) == {"bleu2", "embedded"}
    assert (answer.backend, answer.definition) == ("embedded", "embedded-v1")


def test_every_answer_names_the_models_with_their_hashes(
    stub: reward_pb2_grpc.RewardServiceStub, scorer: Scorer
) -> None:
    answer = stub.Score(request(PAIR))
    assert [(model.name, model.sha256) for model in answer.models] == [
        (model.name, model.sha256) for model in scorer.description.models
    ]


def test_a_stream_is_answered_request_by_request(stub: reward_pb2_grpc.RewardServiceStub) -> None:
    sizes = [3, 0, 1]
    answers = list(stub.ScoreStream(iter([request(*[PAIR] * size) for size in sizes])))
    assert [len(answer.scores) for answer in answers] == sizes


def test_describe_names_the_backend_and_the_hash_of_its_weights(client: RewardClient) -> None:
    about = client.describe()
    assert about.backend == "embedded"
    assert about.components[-1] == "positive_f1"
    assert about.models[0].sha256 == hashlib.sha256((model_folder() / "model.safetensors").read_bytes()).hexdigest()
    assert "torch" in about.versions


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (request(*[PAIR] * 1025), r"pairs: 1025 in one request, the limit is 1024"),
        (request(PAIR, components=["bleu2", "radcliq"]), r"components\[1\]: 'radcliq' is not one of bleu2, "),
    ],
)
def test_a_bad_request_is_refused_with_the_name_of_its_field(
    stub: reward_pb2_grpc.RewardServiceStub, bad: reward_pb2.ScoreRequest, reason: str
) -> None:
    with pytest.raises(grpc.RpcError, match=reason) as caught:
        stub.Score(bad)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_health_and_reflection_answer(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        for name in ("", SERVICE):
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        found = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask])))
        assert SERVICE in {service.name for service in found.list_services_response.service}


def test_a_port_in_use_is_an_error_that_names_it(server: RunningServer, scorer: Scorer) -> None:
    with pytest.raises(
        RewardSetupError, match=f"127.0.0.1:{server.port}: Address already in use; choose another --port"
    ):
        RunningServer(scorer, port=server.port)


@pytest.mark.parametrize("host", ["localhost", "::1", "[::1]", "127.0.0.1"])
def test_a_host_can_be_named_in_any_way(host: str) -> None:
    async def listen() -> int:
        server = RewardServer()
        port = await server.start(host)
        await server.stop(0)
        return port

    assert asyncio.run(listen()) > 0


def test_a_host_that_is_not_of_this_machine_is_named_with_the_way_out() -> None:
    security, _ = ephemeral_security()

    async def listen(host: str) -> None:
        await RewardServer(security=security).start(host)

    for host, why in (("192.0.2.1", "Cannot assign"), ("nowhere.invalid", "not known")):
        with pytest.raises(RewardSetupError, match=f"{host}:0: .*{why}.*; choose another --host"):
            asyncio.run(listen(host))


def test_a_full_queue_is_refused_and_the_waiting_ones_are_served(gate: Gate, gated: RunningServer) -> None:
    with grpc.insecure_channel(gated.address) as channel:
        calls = reward_pb2_grpc.RewardServiceStub(channel)
        first = calls.Score.future(request(("", "a")))
        assert gate.entered.wait(10)
        waiting = calls.Score.future(request(*[("", "bb")] * 40))
        deadline = time.monotonic() + 10
        while True:
            with pytest.raises(grpc.RpcError) as caught:
                calls.Score(request(("", "c")), timeout=0.3)
            if caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED or time.monotonic() > deadline:
                break
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "40 pairs wait" in caught.value.details()
        gate.open.set()
        assert first.result(10).scores[0].components["length"] == 1
        assert [score.components["length"] for score in waiting.result(10).scores] == [2.0] * 40


def test_small_requests_share_a_batch_with_a_big_one(gate: Gate, gated: RunningServer) -> None:
    with grpc.insecure_channel(gated.address) as channel:
        calls = reward_pb2_grpc.RewardServiceStub(channel)
        blocker = calls.Score.future(request(("", "first")))
        assert gate.entered.wait(10)
        big = calls.Score.future(request(*[("", "big")] * 30))
        time.sleep(0.2)
        small = calls.Score.future(request(("", "small")))
        time.sleep(0.2)
        gate.open.set()
        for call in (blocker, big, small):
            call.result(10)
    second = [hypothesis for _, hypothesis in gate.batches[1]]
    assert second.index("small") == 16  # after one slice of the big request, not after all of it
    assert len(second) == 31


def test_requests_whose_caller_left_are_not_scored(gate: Gate, gated: RunningServer) -> None:
    with grpc.insecure_channel(gated.address) as channel:
        calls = reward_pb2_grpc.RewardServiceStub(channel)
        first = calls.Score.future(request(("", "first")))
        assert gate.entered.wait(10)
        with pytest.raises(grpc.RpcError) as caught:
            calls.Score(request(("", "left")), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        gate.open.set()
        first.result(10)
        calls.Score(request(("", "last")), timeout=10)
    assert [hypothesis for batch in gate.batches for _, hypothesis in batch] == ["first", "last"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("explode", "the backend failed on this pair: ValueError"),
        ("nan", "the component length of this pair is nan"),
        ("y" * 16_001, "hypothesis: 16001 characters, the limit is 16000"),
    ],
)
def test_a_bad_pair_has_an_error_of_its_own_and_the_others_their_scores(
    gate: Gate, gated: RunningServer, caplog: pytest.LogCaptureFixture, bad: str, reason: str
) -> None:
    gate.open.set()
    with grpc.insecure_channel(gated.address) as channel, caplog.at_level(logging.INFO):
        answer = reward_pb2_grpc.RewardServiceStub(channel).Score(request(("", "abc"), ("", bad), ("", "abcd")))
    assert [score.error for score in answer.scores] == ["", reason, ""]
    assert [dict(score.components) for score in answer.scores] == [{"length": 3.0}, {}, {"length": 4.0}]
    assert "the text is" not in caplog.text


def test_a_server_that_loads_its_weights_listens_but_does_not_serve() -> None:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def listen() -> tuple[RewardServer, int]:
        made = RewardServer()
        return made, await made.start()

    server, port = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE)).status
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError, match="loading") as caught:
            reward_pb2_grpc.RewardServiceStub(channel).Score(request(PAIR))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)


def test_a_stopping_server_finishes_what_it_has_in_hand() -> None:
    gate = Gate()
    running = RunningServer(gate)
    with grpc.insecure_channel(running.address) as channel:
        call = reward_pb2_grpc.RewardServiceStub(channel).Score.future(request(("", "abc")))
        assert gate.entered.wait(10)
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        time.sleep(0.3)
        gate.open.set()
        assert call.result(10).scores[0].components["length"] == 3
        stopping.join(10)
        assert not stopping.is_alive()


def test_the_server_needs_neither_ray_nor_vllm_nor_deepspeed() -> None:
    folder = Path(__file__).parents[2] / "reward_server"
    for module in folder.rglob("*.py"):
        if module.name not in ("worker.py", "keeper.py", "directory.py", "cluster.py", "scale_cli.py"):
            text = module.read_text()
            assert not any(f"import {name}" in text for name in ("ray", "vllm", "deepspeed", "rrg")), module
