"""The plan of processes of a run: who runs, with how many threads and GPUs, and what is missing for it here.

Contract: pure functions of the config and of what the machine has; starts nothing, imports neither torch nor ray.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from configs.schema import Config
from rrg.errors import UserError

_NEEDED_FILE: Final = {
    "r2gen": "annotation.json",
    "mimic_cxr": "mimic-cxr-2.0.0-split.csv",
    "kaggle": "indiana_reports.csv",
}


@dataclass(frozen=True)
class Role:
    """`count` equal processes; `phase` says when they compute: roles of different phases take turns."""

    name: str
    what: str
    count: int
    threads: int
    gpus: float
    phase: str


def roles(cfg: Config) -> list[Role]:
    """The processes of a run beside the driver, which holds no model."""
    rollout, learner, reward = cfg.rollout, cfg.learner, cfg.reward
    sampling, learning = ("rollout", "update") if rollout.max_staleness == 0 else ("all along", "all along")
    found = [
        Role("rollout", "vLLM engine", rollout.num_actors, rollout.threads, rollout.gpus_per_actor, sampling),
        Role("learner", "DeepSpeed rank", learner.num_ranks, learner.threads, learner.gpus_per_rank, learning),
    ]
    if cfg.reward.address is None:
        gpus = 1.0 if reward.device == "cuda" else 0.0
        what = f"gRPC reward server, {reward.backend}"
        found.append(Role("reward", what, reward.num_workers, reward.threads, gpus, sampling))
    return found


def namespace_of(cfg: Config, run_dir: Path) -> str:
    """Ray's namespace of the actors by which the run's reward workers and rollout actors are scaled."""
    return f"lmrrg-{cfg.name}-{run_dir.name}"


def logical_cpus(cfg: Config) -> int:
    """CPUs that Ray has to grant for every role to start: one a process; the threads take turns by phase."""
    return sum(role.count for role in roles(cfg))


def busy_threads(cfg: Config) -> int:
    """The most threads that compute at the same time: the sum over the roles of the busiest phase."""
    by_phase: dict[str, int] = {}
    for role in roles(cfg):
        by_phase[role.phase] = by_phase.get(role.phase, 0) + role.count * role.threads
    return max(by_phase.values())


def describe(cfg: Config) -> str:
    """The plan as lines for a terminal."""
    cores = os.cpu_count() or 1
    lines = [f"{'role':<10}{'processes':>10}{'threads':>9}{'GPUs':>6}  computes in  what"]
    lines += [
        f"{r.name:<10}{r.count:>10}{r.threads:>9}{r.gpus * r.count:>6g}  {r.phase:<11}  {r.what}" for r in roles(cfg)
    ]
    lines.append(f"at most {busy_threads(cfg)} threads compute at once; this machine has {cores} cores")
    if busy_threads(cfg) > cores and cfg.cluster.address is None:
        lines.append("more threads than cores: it works, but slower than with fewer (rollout.threads, learner.threads)")
    return "\n".join(lines)


def require(cfg: Config) -> None:
    """Stops before anything starts when data or GPUs that the config names are not there.

    Raises:
        UserError: with everything that is missing, one a line. The GPUs of a cluster (cluster.address) are not
            counted here.
    """
    missing: list[str] = []
    missing += _missing_data(cfg)
    path = cfg.model.llm.path
    local = path is not None and path.startswith(("/", "./", "../"))
    if path is not None and local and not (Path(path) / "config.json").is_file():
        missing.append(f"model: model.llm.path={path} is not the folder of a Hugging Face model (no config.json)")
    missing += _missing_start(cfg.start)
    regions = cfg.model.region_descriptions
    if regions is not None and not Path(regions).is_file():
        missing.append(f"model: model.region_descriptions={regions} does not exist (rrg/data/regions.yaml is one)")
    missing += _missing_reward(cfg)
    need = sum(role.gpus * role.count for role in roles(cfg))
    have = _local_gpus()
    if cfg.cluster.address is None and need > have:
        missing.append(
            f"GPUs: the config asks for {need:g} (rollout.num_actors x rollout.gpus_per_actor + learner.num_ranks x "
            f"learner.gpus_per_rank, and reward.num_workers with reward.device=cuda), this machine has {have}; use "
            "cluster=ray on a cluster, or rollout=local learner=local"
        )
    if missing:
        raise UserError("cannot start:\n" + "\n".join(f"  - {line}" for line in missing))


def _missing_data(cfg: Config) -> list[str]:
    """The file without which `data.root` can't be a data set of that format."""
    if cfg.data.root is None:
        return []
    root, needed = Path(cfg.data.root), _NEEDED_FILE.get(cfg.data.name)
    if needed is None:
        return [] if root.exists() else [f"data: data.root={root} does not exist"]
    if any((root / name).is_file() for name in (needed, f"{needed}.gz")):
        return []
    return [f"data: {root / needed} does not exist; data.root is no {cfg.data.name} data set (docs/data.md)"]


def _missing_start(start: str | None) -> list[str]:
    """`start` is a run directory with a finished warm start, or the folder of a policy."""
    if start is None or any((Path(start) / name / "policy.json").is_file() for name in ("", "warm_start")):
        return []
    return [
        f"start: {start} is neither a run directory with a finished warm start nor the folder of a policy (a run's "
        "warm_start, or policy of one of its checkpoints)"
    ]


def _missing_reward(cfg: Config) -> list[str]:
    """Files of the reward that are not there; those of a cluster's workers need not be on this machine."""
    reward = cfg.reward
    found: list[str] = []
    own = reward.address is None and cfg.cluster.address is None
    if own and reward.weights is not None and not Path(reward.weights).is_dir():
        found.append(
            f"reward: the folder reward.weights={reward.weights} does not exist; "
            f"python -m reward_server weights fetch --weights {reward.weights} makes it"
        )
    files = {"reward.idf": reward.idf if own else None}
    files |= {"reward.tls_ca": reward.tls_ca, "reward.token_file": reward.token_file}
    found += [
        f"reward: {name}={path} does not exist"
        for name, path in files.items()
        if path is not None and not Path(path).is_file()
    ]
    return found


def _local_gpus() -> int:
    # The driver's own list, so that neither torch nor a CUDA library has to be loaded.
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
