"""Weights that come through NCCL: taken whole or not served, and no end waits for the other for ever.

There is no GPU here: vLLM's rendezvous is real, so are the engine and the processes; gloo stands in for NCCL.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from actors import nccl
from actors.engine import RolloutEngine
from actors.env import rollout_env
from actors.errors import EngineError, WeightsError
from actors.nccl import Arrival, NcclLoader, TensorsDigest, TensorSpec, Transfer
from actors.rollout import RolloutWorker
from actors.samples import Prompt, Sampling
from actors.trajectory import WeightsRef
from actors.weights import WeightsReceiver, as_array, weights_digest
from configs.schema import RolloutConfig
from learner import publish_nccl
from learner.publish_nccl import NcclPublisher
from rrg.model.build import load_policy
from rrg.model.policy import ReportPolicy
from tests.actors.conftest import published
from tests.actors.gloo import GlooCommunicator, use_gloo

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def gloo(rollout_config: RolloutConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ.update(rollout_env(rollout_config))
    use_gloo(monkeypatch)
    monkeypatch.setattr(publish_nccl.ray, "put", lambda arrays: arrays)  # both ends are in this process


class Here:
    """Asks a publisher of this process; `change` may alter what is then announced."""

    def __init__(self) -> None:
        self.publisher = NcclPublisher(CPU, "127.0.0.1", self)
        self.change: Callable[[Transfer], Transfer] = lambda transfer: transfer
        self.asked = 0

    def ask(self, version: int, receiver: str, workers: int, timeout_s: float) -> Transfer:
        self.asked += 1
        return self.change(self.publisher.open(version, receiver, workers, timeout_s))


@pytest.fixture
def source() -> Here:
    return Here()


def receiver_of(engine: RolloutEngine, policy_dir: Path, cfg: RolloutConfig) -> WeightsReceiver:
    policy, cfg = load_policy(policy_dir), dataclasses.replace(cfg, timeout_s=20.0)  # of transfers that are refused
    return WeightsReceiver(engine, policy, "float32", 60.0, loader=NcclLoader(engine, policy, cfg))


@pytest.fixture
def receiver(worker: RolloutWorker, policy_dir: Path, rollout_config: RolloutConfig) -> WeightsReceiver:
    return receiver_of(worker.engine, policy_dir, rollout_config)


def served(engine: RolloutEngine, ref: WeightsRef) -> tuple[bytes, bytes]:
    """What the engine gives now, to the last bit."""
    embeds = np.random.default_rng(0).normal(size=(20, engine.hidden_size)).astype(np.float32)
    (sample,) = engine.generate([Prompt(embeds, seed=0)], Sampling(24, 2, greedy=True))
    return engine.prompt_logprobs(ref.canary.token_ids).tobytes(), sample.token_ids.tobytes()


def test_weights_do_the_same_whichever_way_they_come(
    worker: RolloutWorker, receiver: WeightsReceiver, source: Here, policy: ReportPolicy, other_policy: ReportPolicy
) -> None:
    through_ray = []
    for version, each in enumerate((policy, other_policy)):
        worker.update(published(each, 10 + version))
        through_ray.append(served(worker.engine, published(each, version)))
    assert through_ray[0] != through_ray[1]
    for version, each in enumerate((policy, other_policy, policy)):
        ref = source.publisher.publish(each, version)
        assert sum(name.startswith("llm.") for name in ref.tensors) == 1  # its token embeddings
        assert receiver.update(ref)
        assert not receiver.update(ref)
        assert receiver.version == worker.engine.version == version
        assert served(worker.engine, ref) == through_ray[version % 2]


def test_an_actor_that_comes_late_gets_the_version_in_force(
    worker: RolloutWorker, receiver: WeightsReceiver, source: Here, policy: ReportPolicy, other_policy: ReportPolicy
) -> None:
    refs = [source.publisher.publish(each, version) for version, each in enumerate((policy, other_policy, policy))]
    assert receiver.update(refs[1]), "the one before may be asked for too"
    before = served(worker.engine, refs[1])
    with pytest.raises(WeightsError, match=r"version 0 is not at learner rank 0 \(any more\), which has 1, 2"):
        receiver.update(refs[0])
    assert receiver.version == 1
    assert served(worker.engine, refs[1]) == before
    assert receiver.update(refs[2])


def test_other_tensors_than_the_engine_has_are_refused_before_any_comes(
    worker: RolloutWorker, receiver: WeightsReceiver, source: Here, policy: ReportPolicy, other_policy: ReportPolicy
) -> None:
    ref = source.publisher.publish(policy, 1)
    receiver.update(ref)
    before = served(worker.engine, ref)
    source.change = lambda transfer: dataclasses.replace(transfer, tensors=transfer.tensors[1:])
    with pytest.raises(WeightsError, match="weights version 2 lacks 1 tensors"):
        receiver.update(source.publisher.publish(other_policy, 2))
    wide = TensorSpec("lm_head.weight", "float32", (1, 1))
    source.change = lambda transfer: dataclasses.replace(
        transfer, tensors=tuple(wide if spec.name == wide.name else spec for spec in transfer.tensors)
    )
    with pytest.raises(WeightsError, match=r"version 3: lm_head.weight is \(1, 1\), not"):
        receiver.update(source.publisher.publish(other_policy, 3))
    assert receiver.version == 1
    assert served(worker.engine, ref) == before


def test_after_a_failed_canary_nothing_is_served_until_right_weights_come(
    worker: RolloutWorker, receiver: WeightsReceiver, source: Here, policy: ReportPolicy, other_policy: ReportPolicy
) -> None:
    right = source.publisher.publish(policy, 1)
    receiver.update(right)
    before = served(worker.engine, right)
    wrong = dataclasses.replace(source.publisher.publish(other_policy, 2), canary=right.canary)
    with pytest.raises(WeightsError, match=r"version 2 failed its canary: the log-prob.*nothing is in force"):
        receiver.update(wrong)
    assert receiver.version is None
    with pytest.raises(EngineError, match="no weights yet"):
        worker.engine.generate([], Sampling(24, 2))
    assert receiver.update(right)
    assert served(worker.engine, right) == before


def test_weights_that_come_otherwise_than_published_end_the_engine(
    build_engine: Callable[..., RolloutEngine],
    policy_dir: Path,
    rollout_config: RolloutConfig,
    source: Here,
    policy: ReportPolicy,
    other_policy: ReportPolicy,
) -> None:
    engine = build_engine(policy_dir / "llm")
    receiver = receiver_of(engine, policy_dir, rollout_config)
    receiver.update(source.publisher.publish(policy, 1))
    source.change = lambda transfer: dataclasses.replace(transfer, digest="0" * 32)
    with pytest.raises(EngineError, match="weights version 2 came as other tensors than were published"):
        receiver.update(source.publisher.publish(other_policy, 2))
    assert receiver.version is None
    with pytest.raises(EngineError, match="out of order"):
        engine.assert_healthy()


# One transfer


TENSORS = {
    "a": torch.arange(70_000, dtype=torch.float32).reshape(7, -1),
    "b": torch.linspace(-3, 3, 33, dtype=torch.bfloat16),
    "c": torch.tensor(2.5),
}


def opened(
    publisher: NcclPublisher, tensors: Mapping[str, torch.Tensor], workers: int = 1, timeout_s: float = 30.0
) -> Transfer:
    """A transfer of tensors that belong to no policy."""
    digest = TensorsDigest()
    for name, tensor in sorted(tensors.items()):
        digest.add(name, tensor)
    publisher._versions[5] = publish_nccl._Version(tensors, digest.hexdigest())
    return publisher.open(5, "rollout actor A", workers, timeout_s)


def test_every_worker_of_an_engine_gets_every_bit(source: Here) -> None:
    transfer = opened(source.publisher, TENSORS, workers=2)

    def take(rank: int) -> dict[str, torch.Tensor]:
        arrival = Arrival(transfer, rank, CPU)
        came = dict(arrival)
        arrival.finish()
        return came

    with ThreadPoolExecutor(2) as pool:
        for came in pool.map(take, (1, 2)):
            assert came.keys() == TENSORS.keys()
            assert all(torch.equal(came[name], tensor) for name, tensor in TENSORS.items())


def test_values_that_are_not_finite_are_not_loaded(source: Here) -> None:
    transfer = opened(source.publisher, {"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")])})
    came = iter(Arrival(transfer, 1, CPU))
    assert next(came)[0] == "a"
    with pytest.raises(ValueError, match="version 5: b holds NaN"):
        next(came)


def test_the_digest_on_the_device_is_that_of_the_arrays() -> None:
    tensors = TENSORS | {"d": torch.zeros(0, 3), "e": torch.full((3, 1 << 15), -1), "f": torch.randn(300, 200).T}
    digest = TensorsDigest()
    for name, tensor in sorted(tensors.items()):
        digest.add(name, tensor)
    assert digest.hexdigest() == weights_digest({name: as_array(tensor) for name, tensor in tensors.items()})


# Ends that hang or die, as processes of their own


RECEIVER = """
import os, pickle, sys, torch
from tests.actors.gloo import GlooCommunicator
from vllm.distributed.device_communicators import pynccl
from actors import nccl
from actors.nccl import Arrival
transfer, then = pickle.load(sys.stdin.buffer)
class Communicator(GlooCommunicator):
    def __init__(self, group, device):
        super().__init__(group, device)
        if then is not None:
            os.kill(os.getpid(), then)
pynccl.PyNcclCommunicator = Communicator
list(Arrival(transfer, 1, torch.device("cpu")))
"""
LARGE = {"a": torch.zeros(20_000_000)}  # more than sockets hold
START_S = 60.0


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A receiver that gets itself a signal when it is connected."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(transfer: Transfer, then: signal.Signals | None = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", RECEIVER], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(pickle.dumps((transfer, then)))
        process.stdin.close()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if any(text in record.getMessage() or text in str(record.exc_info) for record in caplog.records):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("fate", "told"),
    [
        (signal.SIGKILL, "weights version 5 did not go to rollout actor A"),
        (
            signal.SIGSTOP,
            "weights version 5: learner rank 0 waited 20 s for rollout actor A; the transfer is abandoned",
        ),
    ],
)
def test_an_actor_that_dies_or_hangs_amid_a_transfer_is_named_and_harms_no_other(
    source: Here,
    start: Callable[..., subprocess.Popen[bytes]],
    caplog: pytest.LogCaptureFixture,
    fate: signal.Signals,
    told: str,
) -> None:
    start(opened(source.publisher, LARGE, timeout_s=20.0), fate)
    arrival = Arrival(source.publisher.open(5, "rollout actor B", 1, 30.0), 1, CPU)
    assert torch.equal(dict(arrival)["a"], LARGE["a"])
    arrival.finish()
    assert logged(caplog, told)


def test_an_actor_that_does_not_come_is_named(source: Here, caplog: pytest.LogCaptureFixture) -> None:
    opened(source.publisher, TENSORS, timeout_s=1.0)
    assert logged(caplog, "learner rank 0 waited 1 s for rollout actor A to meet")


@pytest.mark.parametrize("comes", [True, False])
def test_an_actor_whose_publisher_hangs_ends_and_says_so(
    start: Callable[..., subprocess.Popen[bytes]], comes: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        spec = TensorSpec("a", "float32", (3,))
        transfer = Transfer(5, "rollout actor A", "127.0.0.1", door.getsockname()[1], 2, (spec,), "", 20.0)
        process = start(dataclasses.replace(transfer, timeout_s=3.0))
        if comes:  # and sends nothing
            kept = GlooCommunicator(nccl._meet(transfer, 0, "", door), CPU)
        assert process.wait(START_S) == 1
        assert process.stderr is not None
        told = process.stderr.read().decode()
        assert "rank 1 of rollout actor A waited 3 s for learner rank 0; the process ends" in told
        if comes:
            kept.destroy()
