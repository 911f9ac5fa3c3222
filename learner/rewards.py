"""The reward servers of a run: its own workers in Ray, or servers that run already.

Contract: `require_servers` asks those that run already, before anything starts; `start_rewards` waits for nothing;
`connected` gives the driver's client once the servers are there and
compute what the config says. The run's own workers listen on loopback in a Ray of its own, and behind TLS and a token
on a cluster; `python -m reward_server scale N` changes their number while the run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from configs.schema import Config, RewardConfig
from learner.placement import own_resource
from learner.plan import namespace_of
from reward_server.client import RewardClient
from reward_server.directory import RewardAccess, RewardDirectory
from reward_server.errors import RewardError, RewardSetupError
from reward_server.scorer import ScorerOptions
from reward_server.security import ClientSecurity, ServerSecurity, ephemeral_security
from reward_server.worker import WorkerOptions
from rrg.errors import UserError
from rrg.progress import Show

SERVERS_ANSWER_S = 10.0
"""How long servers that should be there already may take to answer."""


@dataclass(frozen=True)
class Rewards:
    """`access` goes to the rollout actors. `directory`: of the run's own workers, which live as long as this does."""

    access: RewardAccess
    directory: RewardDirectory | None


def require_servers(cfg: Config, wait_s: float = SERVERS_ANSWER_S) -> None:
    """Raises UserError where reward.address is given and nothing serves there, RewardSetupError where what serves
    computes something else than the config says."""
    if cfg.reward.address is None:
        return
    with _given(cfg.reward, cfg.reward.address).open() as client:
        try:
            client.wait_until_serving(wait_s)
        except RewardError as error:
            raise UserError(
                f"reward.address={cfg.reward.address}: {error}; start the servers (python -m reward_server serve), or "
                "leave it out: a run then has its own"
            ) from error
        _check_backend(client, cfg)


def start_rewards(cfg: Config, run_dir: Path) -> Rewards:
    """Starts the run's own workers, without waiting, or says how to reach the servers of the config."""
    reward = cfg.reward
    if reward.address is not None:
        return Rewards(_given(reward, reward.address), None)
    local = cfg.cluster.address is None
    server, client = (ServerSecurity(), ClientSecurity()) if local else ephemeral_security()
    options = WorkerOptions(
        scorer=_scorer(reward),
        threads=reward.threads,
        host="127.0.0.1" if local else None,
        security=server,
        # A local Ray counts no CPUs of reward workers: their number may change, and the phases of a run take turns.
        num_cpus=0 if local else reward.threads,
        resource=next(iter(own_resource(cfg.cluster, "reward", ray.cluster_resources())), None),
    )
    namespace = namespace_of(cfg, run_dir)
    directory = RewardDirectory.start(options, reward.num_workers, namespace=namespace, security=client)
    return Rewards(RewardAccess(reward.timeout_s, namespace=namespace), directory)


@contextmanager
def connected(rewards: Rewards, cfg: Config, show: Show) -> Iterator[RewardClient]:
    """The driver's client. On a cluster the first worker is enough to begin: others may have to wait for their node."""
    if rewards.directory is not None:
        wanted = cfg.reward.num_workers if cfg.cluster.address is None else 1
        status = rewards.directory.wait_for(wanted, cfg.cluster.start_timeout_s)
        show.line(f"reward workers: {len(status.addresses)} of {status.wanted} serve; to change their number:")
        show.line(f"  python -m reward_server scale N --ray-address {ray.get_runtime_context().gcs_address}")
    with rewards.access.open() as client:
        _check_backend(client, cfg)
        yield client


def _given(reward: RewardConfig, address: str) -> RewardAccess:
    security = ClientSecurity.from_files(ca=reward.tls_ca, token=reward.token_file, server_name=reward.tls_server_name)
    return RewardAccess(reward.timeout_s, tuple(address.split(",")), security)


def _check_backend(client: RewardClient, cfg: Config) -> None:
    backend = client.describe().backend
    if backend != cfg.reward.backend:
        raise RewardSetupError(
            f"the servers of reward.address compute {backend!r}, but the config says "
            f"reward.backend={cfg.reward.backend}"
        )


def _scorer(reward: RewardConfig) -> ScorerOptions:
    # Workers have other working directories than the driver.
    weights, idf = (None if path is None else str(Path(path).absolute()) for path in (reward.weights, reward.idf))
    return ScorerOptions(reward.backend, weights, reward.radgraph, reward.device, reward.dtype, idf)
