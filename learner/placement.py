"""Where the processes of a run go in a Ray cluster, what the cluster lacks for them, and whether its nodes share files.

Contract: what is checked here is what Ray is asked for later: all who start processes of the run take their resources
from `demands` and `own_resource`. Everything but `check`, `look` and `require_shared` is a pure function. Nodes are
taken as empty: a place that another run holds is waited for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from configs.schema import ClusterConfig, Config
from learner.plan import Role, roles
from rrg.errors import UserError

_ANSWER_S: Final = 60.0
# In the run directory, for a moment: tells it from one of the same path on another disk.
_MARK: Final = ".shared"
_ROLES: Final = ("learner", "rollout", "reward")


@dataclass(frozen=True)
class Demand:
    """`count` equal processes of a role, and the Ray resources of each."""

    role: str
    count: int
    resources: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.count} x {_listed(self.resources)}"


@dataclass(frozen=True)
class Node:
    """A node, by Ray's id and its address (several may be on one machine), and all that it has."""

    id: str
    address: str
    resources: Mapping[str, float]

    def __str__(self) -> str:
        shown = {name: self.resources[name] for name in ("CPU", "GPU", *_ROLES) if name in self.resources}
        return f"{self.address} {self.id[:6]} ({_listed(shown)})"


@dataclass(frozen=True)
class Placement:
    """How many processes of each role go to which node, by `Node.id`, and how many find no place."""

    placed: Mapping[str, Counter[str]]
    missing: Mapping[str, int]


def own_resource(cluster: ClusterConfig, role: str, there: Collection[str]) -> dict[str, float]:
    """The custom resource that each process of the role takes, if any; `there`: the resources of the cluster."""
    nodes = {"learner": cluster.learner_nodes, "rollout": cluster.rollout_nodes, "reward": cluster.reward_nodes}[role]
    return {role: 1.0} if nodes == "own" or (nodes == "auto" and role in there) else {}


def demands(cfg: Config, there: Collection[str]) -> list[Demand]:
    """What the run asks of a cluster whose nodes have the resources `there`; the driver asks for nothing."""
    return [Demand(r.name, r.count, _of_process(r, own_resource(cfg.cluster, r.name, there))) for r in roles(cfg)]


def place(wanted: Iterable[Demand], nodes: Sequence[Node]) -> Placement:
    """First fit, in the order of who is hardest to place: roles with nodes of their own, then by GPUs and CPUs."""
    left = {node.id: dict(node.resources) for node in nodes}
    placed: dict[str, Counter[str]] = {}
    missing: dict[str, int] = {}
    for demand in sorted(wanted, key=_difficulty, reverse=True):
        placed[demand.role] = Counter()
        for _ in range(demand.count):
            node = next((id for id, free in left.items() if _fits(demand.resources, free)), None)
            if node is None:
                missing[demand.role] = missing.get(demand.role, 0) + 1
                continue
            for name, amount in demand.resources.items():
                left[node][name] -= amount
            placed[demand.role][node] += 1
    return Placement(placed, missing)


def describe(wanted: Sequence[Demand], found: Placement, nodes: Sequence[Node]) -> list[str]:
    """A line a role, for a terminal."""
    address = {node.id: node.address for node in nodes}
    lines = []
    for demand in wanted:
        where = [f"{count} on {address[id]} {id[:6]}" for id, count in found.placed[demand.role].items()]
        if demand.role in found.missing:
            where.append(f"no place for {found.missing[demand.role]}")
        lines.append(f"{demand.role:<10}{demand}: {', '.join(where)}")
    return lines


def require(wanted: Sequence[Demand], found: Placement, nodes: Sequence[Node], autoscaled: bool) -> None:
    """Raises UserError where a process finds no place and the cluster adds no nodes by itself."""
    if not found.missing or autoscaled:
        return
    lacking = [
        f"  - {demand.role}: place for {demand.count - found.missing[demand.role]} of {demand}"
        for demand in wanted
        if demand.role in found.missing
    ]
    raise UserError(
        "the Ray cluster has no place for the run:\n"
        + "\n".join(lacking)
        + f"\nits nodes: {'; '.join(map(str, nodes))}\n"
        "add nodes, or ask for less (learner.num_ranks, rollout.num_actors, reward.num_workers, their GPUs), or let "
        "roles share nodes (cluster.learner_nodes=any, ...); with cluster.autoscaled=true the run waits for nodes that "
        "the cluster adds by itself"
    )


def check(cfg: Config, run_dir: Path | None) -> list[str]:
    """Looks at the cluster; the placement as lines.

    Raises UserError where the run cannot be placed, or, if there is a `run_dir` yet, where nodes do not share it.
    """
    nodes = look()
    wanted = demands(cfg, {name for node in nodes for name in node.resources})
    found = place(wanted, nodes)
    require(wanted, found, nodes, cfg.cluster.autoscaled)
    if run_dir is not None:
        require_shared(cfg, run_dir, nodes, found)
    return describe(wanted, found, nodes)


def look() -> list[Node]:
    """The living nodes of the Ray cluster that this process is connected to."""
    import ray

    return [Node(n["NodeID"], n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]]


def require_shared(cfg: Config, run_dir: Path, nodes: Sequence[Node], found: Placement) -> None:
    """Raises UserError where a node that gets processes does not see the run directory or a path of the config.

    Of nodes that the autoscaler adds later, rollout actors look for the run directory themselves.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    used = [node for node in nodes if any(node.id in where for where in found.placed.values())]
    needed = [path for path in _paths(cfg) if path is not None and Path(path).exists()]
    look_there = ray.remote(num_cpus=0)(_unseen)
    mark = run_dir / _MARK
    written = uuid4().hex
    mark.write_text(written)
    asked = {
        look_there.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            str(mark), written, needed
        ): node
        for node in used
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    mark.unlink()
    if late:
        nodes_late = ", ".join(str(asked[call]) for call in late)
        raise UserError(f"waited {_ANSWER_S:g} s for {nodes_late} to look whether the run's files are there")
    unseen = {str(asked[call]): names for call in ready if (names := ray.get(call))}
    if unseen:
        raise UserError(
            "these nodes do not see what the run needs, at the same path as the driver:\n"
            + "\n".join(f"  - {node}: {', '.join(names)}" for node, names in unseen.items())
            + "\nput output_dir and what the config names (data.root, data.cache_dir, reward.weights, ...) on a file "
            "system that all nodes share (docs/cluster.md)"
        )


def _paths(cfg: Config) -> tuple[str | None, ...]:
    """What the processes of a run read, where it is a path and not the name of something on a hub."""
    data, model, reward = cfg.data, cfg.model, cfg.reward
    return (
        *(data.root, data.reports, data.imagenome, data.cache_dir, cfg.start),
        *(model.llm.path, model.backbone.path, model.region_descriptions, reward.weights, reward.idf),
    )


def _unseen(mark: str, written: str, needed: Sequence[str]) -> list[str]:
    """Runs on the node: the paths that are not there, the run directory where it is not the driver's own."""
    path = Path(mark)
    shared = path.is_file() and path.read_text() == written
    return [*([] if shared else [str(path.parent)]), *(name for name in needed if not Path(name).exists())]


def _of_process(role: Role, own: Mapping[str, float]) -> dict[str, float]:
    # A rank and an engine book one CPU whatever their threads: in a synchronous run they take turns.
    booked = {"CPU": float(role.threads if role.name == "reward" else 1), "GPU": role.gpus, **own}
    return {name: amount for name, amount in booked.items() if amount > 0}


def _difficulty(demand: Demand) -> tuple[bool, float, float]:
    resources = demand.resources
    return any(name in resources for name in _ROLES), resources.get("GPU", 0.0), resources.get("CPU", 0.0)


def _fits(resources: Mapping[str, float], free: Mapping[str, float]) -> bool:
    return all(free.get(name, 0.0) >= amount for name, amount in resources.items())


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
