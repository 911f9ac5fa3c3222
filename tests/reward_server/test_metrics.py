"""What a server tells about its work: metrics and log lines, and never a report."""

from __future__ import annotations

import json
import logging
import socket
import urllib.request

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from protos import reward_pb2_grpc
from reward_server.errors import RewardSetupError
from reward_server.logs import fields, logged
from reward_server.metrics import Metrics
from reward_server.scorer import Scorer
from tests.reward_server.conftest import RunningServer
from tests.reward_server.test_server import PAIR, request


def _value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    value = registry.get_sample_value(f"lmrrg_reward_{name}", labels)
    assert value is not None, name
    return value


def test_a_server_counts_its_pairs_batches_and_waits(scorer: Scorer) -> None:
    metrics = Metrics()
    running = RunningServer(scorer, metrics=metrics)
    with grpc.insecure_channel(running.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        stub.Score(request(PAIR, PAIR, ("x" * 40_000, "")))
        with pytest.raises(grpc.RpcError):
            stub.Score(request(PAIR, components=["none"]))
    running.stop()
    registry = metrics.registry
    assert _value(registry, "pairs_total", outcome="scored") == 2
    assert _value(registry, "pairs_total", outcome="error") == 1
    assert _value(registry, "requests_total", method="Score", status="OK") == 1
    assert _value(registry, "requests_total", method="Score", status="INVALID_ARGUMENT") == 1
    assert _value(registry, "batch_pairs_sum") == 2
    assert _value(registry, "queue_seconds_count") == 1
    assert _value(registry, "waiting_pairs") == 0
    assert _value(registry, "scorer_cache_misses_total") >= 0


def test_metrics_are_served_over_http_and_each_server_has_its_own() -> None:
    metrics, other = Metrics(), Metrics()
    metrics.batch_pairs.observe(3)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    stop = metrics.serve(port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert "lmrrg_reward_batch_pairs_sum 3.0" in answer.read().decode()
        with pytest.raises(RewardSetupError, match=f"--metrics-port {port}: .*; choose another"):
            other.serve(port)
    finally:
        stop()
    assert "batch_pairs_sum 0.0" in generate_latest(other.registry).decode()


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_lines_have_their_fields_and_no_report(
    scorer: Scorer, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    with logged(form):
        running = RunningServer(scorer)
        with grpc.insecure_channel(running.address) as channel:
            reward_pb2_grpc.RewardServiceStub(channel).Score(request(PAIR, ("z" * 40_000, "")))
        running.stop()
        logging.getLogger("reward_server").warning("something", extra=fields(count=1))
    lines = capfd.readouterr().err
    assert "pneumothorax" not in lines
    if form == "json":
        (line,) = (found for found in map(json.loads, lines.splitlines()) if found["event"] == "request")
        assert {"pairs": 2, "errors": 1, "status": "OK"}.items() <= line.items()
        assert line["seconds"] >= 0
    else:
        assert "INFO request" in lines
        assert "pairs=2 errors=1 status=OK" in lines
        assert "WARNING something count=1" in lines
