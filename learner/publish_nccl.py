"""Keeping a policy's language model where learner rank 0 sends it from, for `rollout.weights=nccl`.

Contract: a version is a copy in host memory, as it would be in Ray's object store, so that training may go on while
actors take it; the rest of the policy goes through the object store. The two newest versions are kept: an actor may be
about to ask for the one before when a new one comes. Every transfer runs in a thread of its own, beside training, and
what becomes of it harms its receiver alone.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from actors.errors import WeightsError
from actors.nccl import PUBLISHER, Streams, TensorSpec, Transfer, WeightsSource, send
from actors.trajectory import WeightsRef
from actors.weights import as_array, as_tensors, embeddings_name, weights_digest
from configs.schema import Config
from learner.environment import WEIGHTS_THREAD
from learner.publish import finite_canary
from rrg.model.policy import ReportPolicy

LOOPBACK: Final = "127.0.0.1"
_KEPT: Final = 2
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankSource:
    """`actors.nccl.WeightsSource`: learner rank 0, by its Ray handle."""

    rank: Any

    def ask(self, version: int, receiver: str, workers: int, timeout_s: float) -> Transfer:
        method = self.rank.open_transfer.options(concurrency_group=WEIGHTS_THREAD)
        try:
            transfer: Transfer = ray.get(method.remote(version, receiver, workers, timeout_s), timeout=timeout_s)
        except RayError as error:
            why = error.cause if isinstance(error, RayTaskError) else error
            raise WeightsError(
                f"weights version {version}: {PUBLISHER} opened no transfer within rollout.timeout_s={timeout_s:g} s: "
                f"{why}"
            ) from error
        return transfer


@dataclass(frozen=True)
class _Version:
    tensors: Mapping[str, torch.Tensor]
    digest: str


def nccl_publisher(cfg: Config, device: torch.device) -> NcclPublisher:
    """That of the rank in whose process this is called."""
    host = LOOPBACK if cfg.cluster.address is None else ray.util.get_node_ip_address()
    return NcclPublisher(device, host, RankSource(ray.get_runtime_context().current_actor))


class NcclPublisher:
    """Publishes from the GPU `device`; actors meet it at `host`, an address of this machine, and ask `source`."""

    def __init__(self, device: torch.device, host: str, source: WeightsSource) -> None:
        self._streams, self._host, self._source = Streams(device), host, source
        self._versions: dict[int, _Version] = {}

    def publish(self, policy: ReportPolicy, version: int) -> WeightsRef:
        """The weights as `version`. Raises what `learner.publish.finite_canary` does."""
        canary = finite_canary(policy, version)
        arrays = {name: as_array(value) for name, value in policy.export_tensors("merged").items()}
        llm = {name.removeprefix("llm."): array for name, array in arrays.items() if name.startswith("llm.")}
        embeddings = f"llm.{embeddings_name(policy.llm)}"
        rest = {name: array for name, array in arrays.items() if name == embeddings or not name.startswith("llm.")}
        before = {number: one for number, one in self._versions.items() if number != version}
        kept = dict(sorted(before.items())[-(_KEPT - 1) :])
        self._versions = kept | {version: _Version(as_tensors(llm), weights_digest(llm))}
        return WeightsRef(version, ray.put(rest), canary, weights_digest(rest), self._source)

    def open(self, version: int, receiver: str, workers: int, timeout_s: float) -> Transfer:
        """Begins to send `version` to the `workers` of one engine, and says where; from any thread, at once.

        Raises WeightsError for a version that is not there (any more).
        """
        published = self._versions.get(version)
        if published is None:
            there = ", ".join(str(number) for number in self._versions)
            raise WeightsError(f"weights version {version} is not at {PUBLISHER} (any more), which has {there}")
        door = socket.create_server((self._host, 0))
        specs = [
            TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in sorted(published.tensors.items())
        ]
        port = int(door.getsockname()[1])
        transfer = Transfer(version, receiver, self._host, port, 1 + workers, tuple(specs), published.digest, timeout_s)
        sending = threading.Thread(target=self._send, args=(transfer, published, door), daemon=True)
        sending.start()
        return transfer

    def _send(self, transfer: Transfer, published: _Version, door: socket.socket) -> None:
        try:
            send(transfer, published.tensors, self._streams, door)
        except Exception:
            _LOG.exception("weights version %d did not go to %s", transfer.version, transfer.receiver)
