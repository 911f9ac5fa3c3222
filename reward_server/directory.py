"""The reward workers of a Ray cluster, from outside: start them, scale them while they are used, follow where they are.

Contract: a directory is a named actor on the head node; whoever knows its namespace finds it. One that is not
`detached` ends with the driver that started it, and its workers with it, however that driver ends. Every call ends in
time: with RewardError where Ray does not answer, RewardSetupError where a person has to mend something.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray

from reward_server.client import RewardClient
from reward_server.cluster import answer_of, find_actor
from reward_server.errors import RewardError, RewardSetupError
from reward_server.keeper import RewardDirectoryImpl, Status
from reward_server.security import ClientSecurity
from reward_server.worker import WorkerOptions

NAME = "RewardDirectory"
_CALL_S = 30.0
_POLL_S = 0.2
_LOG = logging.getLogger(__name__)


class RewardDirectory:
    """A handle of the actor; the driver's one keeps a directory alive that is not detached."""

    def __init__(self, actor: Any, namespace: str) -> None:
        self._actor, self.namespace = actor, namespace

    @classmethod
    def start(
        cls,
        options: WorkerOptions,
        number: int,
        *,
        namespace: str,
        security: ClientSecurity | None = None,
        detached: bool = False,
    ) -> RewardDirectory:
        """Creates the directory and its workers without waiting for them; `security`: what their clients need."""
        # Ray starts the directory anew where it was: on the head node, which the whole cluster stands or falls with.
        actor = ray.remote(RewardDirectoryImpl).options(
            name=NAME,
            namespace=namespace,
            lifetime="detached" if detached else None,
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
            max_restarts=-1,
            max_task_retries=-1,
        )
        try:
            directory = cls(actor.remote(options, security or ClientSecurity(), number), namespace)
        except ValueError as error:  # Ray's word for a name that is taken
            raise RewardSetupError(
                f"the Ray cluster has a reward directory in the namespace {namespace!r} already: end the run it is of"
            ) from error
        directory._actor.begin.remote()
        return directory

    @classmethod
    def find(cls, namespace: str | None = None) -> RewardDirectory:
        """The directory of a namespace; None: the only one of the cluster."""
        return cls(*find_actor(NAME, namespace, "reward workers"))

    def scale(self, number: int) -> None:
        """From now on so many workers, without waiting: new ones may need a node first, others finish their work."""
        self._ask(self._actor.scale.remote(number))

    def status(self) -> Status:
        """All workers and their states."""
        status: Status = self._ask(self._actor.status.remote())
        return status

    def security(self) -> ClientSecurity:
        """How clients reach the workers."""
        security: ClientSecurity = self._ask(self._actor.security.remote())
        return security

    def wait_for(self, number: int, timeout_s: float) -> Status:
        """Returns when so many workers serve; raises why they do not, after `timeout_s` or once no waiting helps."""
        deadline = time.monotonic() + timeout_s
        while len((status := self.status()).addresses) < number:
            status.check()
            if time.monotonic() > deadline:
                raise RewardError(
                    f"waited {timeout_s:g} s for {number} reward workers to serve: "
                    f"{'; '.join(status.lines()) or 'there are none'}"
                )
            time.sleep(_POLL_S)
        return status

    def stop(self) -> None:
        """Ends the directory; its workers end with it, a moment later."""
        ray.kill(self._actor)

    def _ask(self, reference: Any) -> Any:
        return answer_of(reference, f"the reward directory {self.namespace!r}")


class Follows(Protocol):
    """The part of a client that `follow` needs."""

    def update_addresses(self, addresses: Sequence[str]) -> None:
        """Ask these servers from now on."""
        ...


class Follower:
    """A thread that tells a client which workers serve; made by `follow`."""

    def __init__(self, client: Follows, directory: RewardDirectory, interval_s: float) -> None:
        self._client, self._directory, self._interval_s = client, directory, interval_s
        self._stopped = threading.Event()
        self._known: list[str] = []
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="follow-rewards", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. Do this before the client is closed."""
        self._stopped.set()
        self._thread.join(_CALL_S)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                addresses = self._directory.status().addresses
            except RewardError as error:
                # The client goes on with the workers that it knows.
                if not self._warned:
                    _LOG.warning("%s", error)
                self._warned = True
                continue
            self._warned = False
            # Without any worker the client goes on asking the last ones: its calls wait for their deadline.
            if addresses and addresses != self._known:
                self._client.update_addresses(addresses)
                self._known = addresses


def follow(client: Follows, directory: RewardDirectory, interval_s: float = 1.0) -> Follower:
    """Keeps the client's addresses up to date until `stop()`."""
    return Follower(client, directory, interval_s)


@dataclass(frozen=True)
class RewardAccess:
    """How a process of a run reaches the reward servers; travels to Ray actors.

    Either fixed `addresses` with their `security`, or the `namespace` of a directory, which knows both.
    """

    timeout_s: float
    addresses: tuple[str, ...] = ()
    security: ClientSecurity = field(default_factory=ClientSecurity)
    namespace: str | None = None

    @contextmanager
    def open(self) -> Iterator[RewardClient]:
        """A client that knows at any time where the servers are; waits for the first of a directory's workers."""
        if self.namespace is None:
            with RewardClient(self.addresses, self.timeout_s, self.security) as client:
                yield client
            return
        directory = RewardDirectory.find(self.namespace)
        addresses = directory.wait_for(1, self.timeout_s).addresses
        with RewardClient(addresses, self.timeout_s, directory.security()) as client:
            follower = follow(client, directory)
            try:
                yield client
            finally:
                follower.stop()
