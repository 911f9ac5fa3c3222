"""Where a run's processes go: first on paper, then on a Ray cluster of three nodes on this machine."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from configs.load import compose_config
from configs.schema import Config
from learner import placement
from learner.group import create_ranks
from learner.placement import Demand, Node, demands, describe, place, require
from rrg.errors import UserError

HEAD = Node("head", "10.0.0.1", {"CPU": 8})
LEARNER = Node("learner", "10.0.0.2", {"CPU": 32, "GPU": 4, "learner": 4})
ROLLOUT = Node("rollout", "10.0.0.3", {"CPU": 32, "GPU": 2, "rollout": 2})
REWARD = Node("reward", "10.0.0.4", {"CPU": 8, "GPU": 1, "reward": 1})
ALL = (HEAD, LEARNER, ROLLOUT, REWARD)


def config(*overrides: str) -> Config:
    return compose_config(["+exp=mimic_rl", "cluster=fixed", "data.root=/data", "reward.weights=/weights", *overrides])


def resources(*nodes: Node) -> set[str]:
    return {name for node in nodes for name in node.resources}


def test_every_role_goes_to_the_nodes_that_have_its_resource() -> None:
    cfg = config("rollout.num_actors=2")
    wanted = demands(cfg, resources(*ALL))
    found = place(wanted, ALL)
    assert found.placed == {"learner": {"learner": 4}, "rollout": {"rollout": 2}, "reward": {"reward": 1}}
    assert not found.missing
    require(wanted, found, ALL, autoscaled=False)
    assert describe(wanted, found, ALL)[0] == "rollout   2 x 1 CPU, 1 GPU, 1 rollout: 2 on 10.0.0.3 rollou"


def test_what_has_no_place_is_named_with_what_is_there() -> None:
    cfg = config()  # three rollout actors
    wanted = demands(cfg, resources(*ALL))
    found = place(wanted, ALL)
    assert found.missing == {"rollout": 1}
    with pytest.raises(UserError, match="rollout: place for 2 of 3 x 1 CPU, 1 GPU, 1 rollout") as error:
        require(wanted, found, ALL, autoscaled=False)
    assert "10.0.0.3 rollou (32 CPU, 2 GPU, 2 rollout)" in str(error.value)
    require(wanted, found, ALL, autoscaled=True)  # the cluster will add the node


def test_a_cluster_without_nodes_of_roles_is_used_as_it_is() -> None:
    plain = [Node(f"n{i}", f"10.0.0.{i}", {"CPU": 64, "GPU": 4}) for i in range(2)]
    wanted = demands(config(), resources(*plain))
    assert [demand.resources for demand in wanted] == [
        {"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 4, "GPU": 1},
    ]  # fmt: skip
    assert sum(sum(where.values()) for where in place(wanted, plain).placed.values()) == 8
    owned = demands(config("cluster.learner_nodes=own"), resources(*plain))
    with pytest.raises(UserError, match="learner: place for 0 of 4"):
        require(owned, place(owned, plain), plain, autoscaled=False)


def test_roles_may_share_nodes_that_belong_to_one_of_them() -> None:
    cfg = config("cluster.reward_nodes=any", "reward.device=cpu", "rollout.num_actors=2")
    found = place(demands(cfg, resources(LEARNER, ROLLOUT)), [LEARNER, ROLLOUT])
    assert not found.missing


def test_a_processs_gpus_are_on_one_node() -> None:
    two_by_two = [Node("a", "a", {"CPU": 8, "GPU": 2}), Node("b", "b", {"CPU": 8, "GPU": 2})]
    assert place([Demand("rollout", 1, {"CPU": 1, "GPU": 4})], two_by_two).missing == {"rollout": 1}


def test_who_is_hardest_to_place_goes_first() -> None:
    # By order of the roles the rank would take the only place of the rollout actor.
    nodes = [Node("a", "a", {"CPU": 1, "rollout": 1}), Node("b", "b", {"CPU": 1})]
    wanted = [Demand("learner", 1, {"CPU": 1}), Demand("rollout", 1, {"CPU": 1, "rollout": 1})]
    assert place(wanted, nodes).placed == {"rollout": Counter({"a": 1}), "learner": Counter({"b": 1})}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="pl", dir="/tmp") as folder:
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "temp_dir": folder})
        for _ in range(2):
            made.add_node(num_cpus=4, resources={"learner": 2})
        ray.init(address=made.address, log_to_driver=False)
        yield
        ray.shutdown()
        made.shutdown()


class Whereabouts:
    """In place of a rank, whose DeepSpeed is not needed to be somewhere."""

    def __init__(self, *_: object) -> None: ...

    def meeting(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def start(self, meeting: str) -> None: ...


def test_ranks_are_packed_on_nodes_of_their_own(cluster: None, tmp_path: Path) -> None:
    cfg = dataclasses.replace(config())
    cfg.learner.num_ranks, cfg.learner.gpus_per_rank = 2, 0
    ranks = create_ranks(cfg, tmp_path, Whereabouts)  # type: ignore[arg-type]
    first, second = ray.get([rank.meeting.remote() for rank in ranks.handles], timeout=60)
    assert first == second
    (node,) = (node for node in placement.look() if node.id == first)
    assert "learner" in node.resources


def test_a_node_that_does_not_see_the_data_is_named(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "data").mkdir()
    # What a node resolves against another working directory is another path there, as on a disk of its own.
    cfg = config("learner.num_ranks=4", "rollout.num_actors=1", "data.root=data", f"data.cache_dir={tmp_path}")
    cfg.learner.gpus_per_rank = cfg.rollout.gpus_per_actor = 0
    cfg.reward.device, cfg.reward.threads, cfg.reward.weights = "cpu", 1, None
    with pytest.raises(UserError, match=r"do not see what the run needs(.|\n)* learner\): data\n"):
        placement.check(cfg, tmp_path / "run")
    cfg.data.root = str(tmp_path / "data")
    lines = placement.check(cfg, tmp_path / "run")
    assert lines[1].startswith("learner   4 x 1 CPU, 1 learner: 2 on ")
    assert not list((tmp_path / "run").iterdir())
