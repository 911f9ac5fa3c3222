"""What becomes of work: whose caller left, that does not fit, or whose backend is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import reward_server.server as server_module
from protos import reward_pb2_grpc
from reward_server.client import RewardClient
from reward_server.errors import PairError
from reward_server.metrics import Metrics
from reward_server.scorer import Pair
from reward_server.service import Limits
from tests.reward_server.conftest import RunningServer
from tests.reward_server.test_server import Gate, request

# Asks, and is frozen by the test before it could cancel its call.
FROZEN_CALLER = """
import sys, time, grpc
from protos import reward_pb2, reward_pb2_grpc
stub = reward_pb2_grpc.RewardServiceStub(grpc.insecure_channel(sys.argv[1]))
call = stub.Score.future(reward_pb2.ScoreRequest(pairs=[reward_pb2.Pair(hypothesis="frozen")]), timeout=2)
time.sleep(0.5)
print("asked", flush=True)
time.sleep(60)
"""


class Fragile(Gate):
    """A gate that stands open, and fails on everything once it is `lost`."""

    def __init__(self) -> None:
        super().__init__()
        self.open.set()
        self.lost = False

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().score(pairs)

    def label(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().label(texts)


def soon(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)
    return happened()


@pytest.mark.parametrize(
    ("limits", "pairs"),
    [(Limits(waiting_pairs=40), [("", "left")] * 40), (Limits(waiting_characters=400), [("left" * 100, "")])],
)
def test_a_caller_that_left_makes_room_in_the_queue_at_once(limits: Limits, pairs: list[Pair]) -> None:
    gate, metrics = Gate(), Metrics()
    running = RunningServer(gate, limits, metrics=metrics)
    with grpc.insecure_channel(running.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        first = stub.Score.future(request(("", "first")))
        assert gate.entered.wait(10)
        left = stub.Score.future(request(*pairs))
        assert soon(lambda: metrics.registry.get_sample_value("lmrrg_reward_waiting_pairs") == len(pairs))
        with pytest.raises(grpc.RpcError) as caught:
            stub.Score(request(("", "no room")), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        left.cancel()
        assert soon(lambda: metrics.registry.get_sample_value("lmrrg_reward_waiting_pairs") == 0)
        last = stub.Score.future(request(("", "last")))
        gate.open.set()
        assert [call.result(10).scores[0].components["length"] for call in (first, last)] == [5, 4]
    running.stop()
    assert metrics.registry.get_sample_value("lmrrg_reward_dropped_pairs_total") == len(pairs)
    assert [hypothesis for batch in gate.batches for _, hypothesis in batch] == ["first", "last"]


def test_the_deadline_ends_the_work_of_a_caller_that_cannot_say_so_any_more() -> None:
    gate, metrics = Gate(), Metrics()
    running = RunningServer(gate, metrics=metrics)
    with grpc.insecure_channel(running.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        first = stub.Score.future(request(("", "first")))
        assert gate.entered.wait(10)
        caller = subprocess.Popen(
            [sys.executable, "-c", FROZEN_CALLER, running.address], stdout=subprocess.PIPE, text=True
        )
        assert caller.stdout is not None
        assert caller.stdout.readline() == "asked\n"
        caller.send_signal(19)  # SIGSTOP
        assert soon(lambda: metrics.registry.get_sample_value("lmrrg_reward_dropped_pairs_total") == 1)
        gate.open.set()
        first.result(10)
        caller.kill()
        caller.wait(10)
    running.stop()
    assert [hypothesis for batch in gate.batches for _, hypothesis in batch] == ["first"]


def test_a_pair_that_always_fails_ends_neither_its_neighbours_nor_the_server() -> None:
    running = RunningServer(Fragile())
    with grpc.insecure_channel(running.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        for pairs in ([("", "explode")], [("", "explode")] * 5, [("", "explode")] * 5 + [("", "abc")]):
            answer = stub.Score(request(*pairs), timeout=10)
            assert [bool(score.error) for score in answer.scores] == [text == "explode" for _, text in pairs]
    running.stop()


def test_a_scorer_that_cannot_explain_goes_on_scoring() -> None:
    running = RunningServer(Fragile())
    with RewardClient([running.address], timeout_s=10) as client:
        with pytest.raises(PairError):
            client.explain([("", "abc")])
        assert client.score([("", "abc")]) == [{"length": 3}]
    running.stop()


def test_a_server_that_lost_its_backend_says_so_and_its_clients_turn_to_another() -> None:
    lost, healthy = Fragile(), Fragile()
    one, two = RunningServer(lost), RunningServer(healthy)
    with RewardClient([one.address, two.address], timeout_s=20) as client:
        assert client.score([("", "ab")] * 300) == [{"length": 2}] * 300
        lost.lost = True
        futures = [client.submit([("", "abc")] * 10) for _ in range(40)]
        assert all(future.result(30) == [{"length": 3}] * 10 for future in futures)
    with grpc.insecure_channel(one.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert soon(lambda: check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(grpc.RpcError, match="RuntimeError") as caught:
            reward_pb2_grpc.RewardServiceStub(channel).Score(request(("", "abc")))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "CUDA" not in str(caught.value.details())
    one.stop()
    two.stop()


def test_connections_are_renewed_under_load_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_CONNECTION_AGE_MS", 300)
    running = [RunningServer(Fragile()) for _ in range(2)]
    wrong: list[object] = []
    end = time.monotonic() + 3

    def ask() -> None:
        with RewardClient([one.address for one in running], timeout_s=10) as client:
            while time.monotonic() < end:
                scores = client.score([("", "abc")] * 3)
                if scores != [{"length": 3}] * 3:
                    wrong.append(scores)

    def run() -> None:
        try:
            ask()
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for one in running:
        one.stop()
    assert not wrong
