"""The Ray actor that hosts a reward server.

Contract: a worker loads its backend at the first `serve()`, and says then where it serves and what. Ray starts it again
when its process or node dies, on another port: call `serve()` again. Threads are set before torch is loaded.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from reward_server.scorer import Description, Scorer, ScorerOptions
from reward_server.security import ServerSecurity
from reward_server.threads import set_threads

if TYPE_CHECKING:
    from reward_server.server import RewardServer


@dataclass(frozen=True)
class WorkerOptions:
    """What every worker of a directory runs, and what it takes of the cluster."""

    scorer: ScorerOptions = field(default_factory=ScorerOptions)
    threads: int = 1
    # Address to listen on; None: the node's own, for callers on other nodes (needs a certificate in `security`).
    host: str | None = "127.0.0.1"
    security: ServerSecurity = field(default_factory=ServerSecurity)
    # What Ray books for each worker, beside one GPU where the device is one; `resource`: one of this custom resource.
    num_cpus: float = 0.0
    resource: str | None = None


@dataclass(frozen=True)
class Serving:
    """Where a worker serves (host:port), and what."""

    address: str
    description: Description


class RewardWorkerImpl:
    """The actor's class; its methods answer while it loads and scores."""

    def __init__(self, options: WorkerOptions) -> None:
        set_threads(options.threads)
        self._options = options
        self._server: RewardServer | None = None
        self._starting: asyncio.Task[Serving] | None = None

    async def hello(self) -> int:
        """The process id: the worker has its place in the cluster."""
        return os.getpid()

    async def serve(self) -> Serving:
        """Where it serves, once it does; RewardSetupError if the backend can't be loaded."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def stop(self, grace_s: float) -> None:
        """Tells the clients, takes no new requests, and gives those in hand `grace_s` seconds."""
        if self._server is not None:
            await self._server.stop(grace_s)

    async def _start(self) -> Serving:
        # Imported here: whoever only creates workers needs no torch.
        from reward_server.server import RewardServer

        host = self._options.host or ray.util.get_node_ip_address()
        scorer = await asyncio.to_thread(self._load)
        self._server = RewardServer(security=self._options.security)
        port = await self._server.start(host)
        await self._server.serve(scorer)
        return Serving(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", scorer.description)

    def _load(self) -> Scorer:
        import torch

        from reward_server.selfcheck import load_scorer

        torch.set_num_threads(self._options.threads)
        return load_scorer(self._options.scorer)


def create_worker(options: WorkerOptions) -> Any:
    """The handle of a new worker. It waits in Ray for its place: a demand that an autoscaler sees."""
    return (
        ray.remote(RewardWorkerImpl)
        .options(
            num_cpus=options.num_cpus,
            num_gpus=1 if options.scorer.device.startswith("cuda") else 0,
            resources={options.resource: 1} if options.resource else {},
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote(options)
    )
