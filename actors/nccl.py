"""The language model's weights from learner rank 0 to one rollout actor's engine, through NCCL.

Contract, of both ends:
- **An actor asks, the publisher sends.** The `WeightsRef` of a version says whom to ask (`WeightsSource`). An actor
  that needs it asks for a `Transfer`, and both ends meet at its port: rank 0 is the publisher, ranks 1 to N are the
  workers of this one engine (tensor parallel). A group has no other members and lives for one transfer. So there is
  no membership to keep: an actor that was added or replaced asks like any other, and one that dies harms its own
  group alone. The price: the publisher sends once an actor, not once, and every transfer sets up a communicator.
- **Every wait ends** after `Transfer.timeout_s` (the publisher's, for members to meet, after up to three times that),
  with the name of who was waited for. NCCL itself waits without end.
  Both ends first meet at a barrier, where a member that is dead by then is found; NCCL cannot be interrupted while it
  connects. After that the publisher, whose thread trains nothing, aborts its communicator and abandons the group. A
  worker ends its process: a thread that hangs on a GPU cannot be relied on to come back, and the driver replaces the
  actor as any that is lost.
- **Weights are checked on their way**: every tensor is finite before it is loaded, and the digest of all is the
  publisher's, bit for bit; `TensorsDigest` computes `actors.weights.weights_digest` on the device. They are loaded as
  they come, a tensor at a time, in place of those in force: after a transfer that failed the engine serves nothing, and
  the actor ends (`EngineError`, `WeightsError`).

vLLM (0.32) gives the rendezvous and the communicator, those of its `NCCLWeightTransferEngine`. That engine itself is
not used: it loads without telling what it left untouched, and its waits have no end.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from actors.trajectory import WeightsRef
from actors.weights import ROW, as_array, embeddings_name
from configs.schema import RolloutConfig

if TYPE_CHECKING:
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup

    from actors.engine import RolloutEngine
    from rrg.model.policy import ReportPolicy

_LOG = logging.getLogger(__name__)
PUBLISHER: Final = "learner rank 0"


@dataclass(frozen=True)
class TensorSpec:
    """Name as in the Hugging Face checkpoint, dtype as torch names it ("bfloat16"), and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Transfer:
    """One transfer that a publisher has opened: where its `ranks` meet, and what then comes, in which order.

    `receiver` names the actor in what is logged. `digest` is of all `tensors`.
    """

    version: int
    receiver: str
    host: str
    port: int
    ranks: int
    tensors: tuple[TensorSpec, ...]
    digest: str
    timeout_s: float


class WeightsSource(Protocol):
    """Whom to ask for the language model of a published version; travels in `WeightsRef.llm`."""

    def ask(self, version: int, receiver: str, workers: int, timeout_s: float) -> Transfer:
        """Opens a transfer to the `workers` of one engine, which must join it now.

        Raises WeightsError where the version has been superseded, or no answer comes in time.
        """


class TensorsDigest:
    """`actors.weights.weights_digest`, tensor by tensor in the order of their names, where the tensors are: of each at
    most 128 KiB leave the device."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Takes in every byte of `tensor`."""
        self._hash.update(f"{name} {as_array(tensor.new_empty(0)).dtype.str} {tuple(tensor.shape)}\n".encode())
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        whole = len(data) - len(data) % ROW
        # Sums of int64 wrap around as those of uint64 do, which torch lacks.
        self._hash.update(data[:whole].view(torch.int64).reshape(-1, ROW // 8).sum(dim=0).cpu().numpy().tobytes())
        self._hash.update(data[whole:].cpu().numpy().tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class Streams:
    """Streams of a GPU beside those that train, taken again and again: torch keeps freed memory for the stream that it
    was used on, so as many as transfers run at once, and no more."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._idle: list[Any] = []

    @contextmanager
    def taken(self) -> Iterator[Any]:
        """One of them, current in the block; None on CPUs."""
        if self.device.type != "cuda":
            yield None
            return
        stream = self._idle.pop() if self._idle else torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield stream
        self._idle.append(stream)  # one that failed may still be busy


def send(transfer: Transfer, tensors: Mapping[str, torch.Tensor], streams: Streams, door: socket.socket) -> None:
    """Sends `tensors` (on any device) from the GPU of `streams`; returns when they have arrived, or the receiver is
    given up, which is logged with its name. `door` listens at the transfer's port."""
    waited = f"{PUBLISHER} waited {transfer.timeout_s:g} s for {transfer.receiver}"
    waiting = f"weights version {transfer.version}: {waited}"
    communicators: list[Any] = []

    def abandon() -> None:
        _LOG.error("%s; the transfer is abandoned", waiting)
        destroy()  # one that NCCL still connects cannot be aborted: its thread is left

    def destroy() -> None:
        while communicators:  # once: NCCL does not bear a second time
            communicators.pop().destroy()

    group = _meet(transfer, 0, waiting, door)
    try:
        with _alarm(transfer.timeout_s, abandon), streams.taken() as stream:
            communicator = _connect(group, streams.device)
            communicators.append(communicator)
            for spec in transfer.tensors:
                communicator.broadcast(tensors[spec.name].to(streams.device).contiguous(), src=0, stream=stream)
            if stream is not None:
                stream.synchronize()
            _part(group, transfer)
    finally:  # its memory on the GPU is not freed by itself
        destroy()


class Arrival:
    """The weights of a transfer as they come to the worker of rank `rank` (from 1); iterate once, then `finish`."""

    def __init__(self, transfer: Transfer, rank: int, device: torch.device) -> None:
        self._transfer, self._rank, self._device = transfer, rank, device
        self._digest = TensorsDigest()

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Ends this process where the publisher does not come, or stops sending. Raises ValueError for values that are
        not finite."""
        transfer = self._transfer
        who = f"weights version {transfer.version}: rank {self._rank} of {transfer.receiver}"
        waiting = f"{who} waited {transfer.timeout_s:g} s for {PUBLISHER}"

        def end() -> None:
            _LOG.error("%s; the process ends", waiting)
            os._exit(1)

        with _alarm(transfer.timeout_s, end):
            group = _meet(transfer, self._rank, waiting)
            communicator = _connect(group, self._device)
            for spec in transfer.tensors:
                tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=self._device)
                communicator.broadcast(tensor, src=0)
                self._digest.add(spec.name, tensor)
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise ValueError(f"weights version {transfer.version}: {spec.name} holds NaN or infinite values")
                yield spec.name, tensor
            _part(group, transfer)
            communicator.destroy()

    def finish(self) -> None:
        """Raises ValueError unless what came is what was published."""
        if self._digest.hexdigest() != self._transfer.digest:
            raise ValueError(
                f"weights version {self._transfer.version} came as other tensors than were published: their digests "
                "differ"
            )


class NcclLoader:
    """`actors.weights.LLMLoader` through NCCL; the token embeddings come with the arrays."""

    restores = False

    def __init__(self, engine: RolloutEngine, policy: ReportPolicy, cfg: RolloutConfig) -> None:
        self._engine, self._cfg = engine, cfg
        name = embeddings_name(policy.llm)
        self._embeddings = f"llm.{name}"
        self.shapes: Mapping[str, tuple[int, ...]] = {self._embeddings: engine.weight_shapes[name]}
        self._receiver = f"the rollout actor at {socket.gethostname()}, pid {os.getpid()}"

    def load(self, ref: WeightsRef, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Raises WeightsError where the publisher does not answer, or has something else; EngineError where the
        transfer fails."""
        source: WeightsSource = ref.llm
        transfer = source.ask(ref.version, self._receiver, self._cfg.tensor_parallel, self._cfg.timeout_s)
        self._engine.receive_weights(transfer)
        return tensors[self._embeddings]


def _meet(transfer: Transfer, rank: int, waiting: str, door: socket.socket | None = None) -> StatelessProcessGroup:
    """The transfer's group, when all of its members are there. Raises TimeoutError, which begins with `waiting`."""
    from vllm.distributed.utils import StatelessProcessGroup

    limit = math.ceil(transfer.timeout_s)
    try:
        group = StatelessProcessGroup.create(
            transfer.host, transfer.port, rank, transfer.ranks, store_timeout=limit, listen_socket=door
        )
        group.barrier(transfer.timeout_s)
    except (RuntimeError, OSError) as error:
        raise TimeoutError(f"{waiting} to meet at {transfer.host}:{transfer.port}") from error
    return group


def _part(group: StatelessProcessGroup, transfer: Transfer) -> None:
    """Returns when all have what was sent: vLLM closes a communicator by an abort, which may drop what is under way."""
    group.barrier(transfer.timeout_s)


def _connect(group: StatelessProcessGroup, device: torch.device) -> PyNcclCommunicator:
    """Raises RuntimeError where there is no NCCL."""
    from vllm.distributed.device_communicators import pynccl
    from vllm.utils.nccl import unpinned_nccl_env

    with unpinned_nccl_env():
        communicator = pynccl.PyNcclCommunicator(group, device=device)
    if communicator.disabled:  # vLLM then takes no part in any broadcast, without a word
        raise RuntimeError("vLLM found no NCCL library (libnccl.so.2): rollout.weights=object_store does without")
    return communicator


@contextmanager
def _alarm(after_s: float, call: Callable[[], None]) -> Iterator[None]:
    """Calls `call` in a thread of its own, if the block takes longer."""
    timer = threading.Timer(after_s, call)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
