"""cluster.yaml and its variants: what Ray accepts, and what Ray would find out only on machines that cost money."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from configs.load import compose_config
from configs.schema import Config
from learner.placement import Node, demands, place

ROOT = Path(__file__).parents[2]
ROLES = ("learner", "rollout", "reward")
LAUNCHED = ("cluster.yaml", "deploy/local.yaml")
FILES = (*LAUNCHED, "deploy/kuberay.yaml", "deploy/slurm.sh", "deploy/Dockerfile")
# Instance type: vCPUs, memory (GiB), GPUs, memory of a GPU (GB).
INSTANCES = {
    "g6.2xlarge": (8, 32, 1, 24),
    "g6.4xlarge": (16, 64, 1, 24),
    "g6e.2xlarge": (8, 64, 1, 48),
    "g6e.12xlarge": (48, 384, 4, 48),
}
EXPERIMENTS = ("mimic_rl", "mimic_grpo", "iu_rl", "iu_grpo")
COMMANDS = (
    "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
    "worker_start_ray_commands",
)  # fmt: skip


def text(name: str) -> str:
    return (ROOT / name).read_text()


def loaded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text(name))
    return found


def node_types() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = loaded("cluster.yaml")["available_node_types"]
    return found


def commands(name: str) -> list[str]:
    return [command for kind in COMMANDS for command in loaded(name).get(kind, [])]


def experiment(name: str) -> Config:
    return compose_config([f"+exp={name}", "cluster=ray", "data.root=/shared/data", "reward.weights=/shared/weights"])


def nodes(how_many: str) -> list[Node]:
    """The nodes of cluster.yaml at its smallest ("min_workers") or largest ("max_workers"), the head included."""
    found = [Node("head", "head", node_types()["head"]["resources"])]
    for role in ROLES:
        count = node_types()[role][how_many]
        found += [Node(f"{role} {index}", role, node_types()[role]["resources"]) for index in range(count)]
    return found


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(loaded(name)))


def test_each_role_has_a_node_type_of_its_own_as_much_of_its_resource_as_gpus_and_sizes_of_its_own() -> None:
    types = node_types()
    assert set(types) == {"head", *ROLES}
    for role in ROLES:
        resources = types[role]["resources"]
        assert set(resources) == {"CPU", "GPU", role}
        assert resources[role] == resources["GPU"] > 0
        assert 0 <= types[role]["min_workers"] <= types[role]["max_workers"]
    assert loaded("cluster.yaml")["max_workers"] == sum(types[role]["max_workers"] for role in ROLES)


def test_nothing_but_the_driver_runs_on_the_head() -> None:
    assert loaded("cluster.yaml")["head_node_type"] == "head"
    assert node_types()["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert node_types()["head"]["max_workers"] == 0


@pytest.mark.parametrize("role", ROLES)
def test_a_node_has_what_its_instance_type_has(role: str) -> None:
    cpus, _, gpus, _ = INSTANCES[node_types()[role]["node_config"]["InstanceType"]]
    resources = node_types()[role]["resources"]
    assert (resources["CPU"], resources["GPU"]) == (cpus, gpus)


def test_what_the_comments_say_of_an_instance_is_what_it_has() -> None:
    said = re.findall(r"InstanceType: (\S+)  # (\d+) vCPUs, (\d+) GiB, (\d) \w+ of (\d+) GB", text("cluster.yaml"))
    assert {name: tuple(map(int, numbers)) for name, *numbers in said} == INSTANCES


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_of_the_real_job_finds_its_places_on_nodes_of_its_roles(name: str) -> None:
    largest = nodes("max_workers")
    wanted = demands(experiment(name), {resource for node in largest for resource in node.resources})
    found = place(wanted, largest)
    assert not found.missing
    for role, where in found.placed.items():
        assert {node.split()[0] for node in where} == {role}


def test_a_run_that_starts_before_the_nodes_are_there_waits_for_nodes_of_its_roles() -> None:
    """`ray up` returns when the head is up."""
    for demand in demands(experiment("mimic_rl"), set(node_types()["head"]["resources"])):
        assert demand.resources[demand.role] == 1


def test_the_ranks_of_the_paper_s_setting_are_on_one_node() -> None:
    smallest = nodes("min_workers")
    found = place(demands(experiment("mimic_rl"), {name for node in smallest for name in node.resources}), smallest)
    assert found.placed["learner"] == {"learner 0": 4}


@pytest.mark.parametrize("role", ["learner", "rollout"])
def test_two_versions_of_the_weights_fit_the_object_store_of_a_node(role: str) -> None:
    _, memory, _, _ = INSTANCES[node_types()[role]["node_config"]["InstanceType"]]
    assert 0.3 * memory * 1024 >= experiment("mimic_rl").cluster.object_store_mib


def test_an_engine_fits_its_gpu() -> None:
    """Weights (configs/model/qwen2_5_1_5b.yaml), KV cache, and 5 GB for what the engine computes with."""
    _, _, _, memory = INSTANCES[node_types()["rollout"]["node_config"]["InstanceType"]]
    assert 3.6 + experiment("mimic_rl").rollout.kv_cache_mib * 2**20 / 1e9 + 5 < memory


@pytest.mark.parametrize("name", LAUNCHED)
def test_all_code_is_brought_to_the_nodes_and_nothing_else(name: str) -> None:
    mounts = loaded(name)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    packages = tomllib.loads(text("pyproject.toml"))["tool"]["setuptools"]["packages"]
    code = {package.split(".")[0] for package in packages} | {"benchmarks", "requirements"}
    assert mounts == {f"~/lm-rrg/{folder}": folder for folder in code}
    assert all((ROOT / folder).is_dir() for folder in code)


@pytest.mark.parametrize("name", LAUNCHED)
def test_commands_name_files_that_are_brought_to_the_nodes(name: str) -> None:
    named = [path for command in commands(name) for path in re.findall(r"~/lm-rrg/(\S+)", command)]
    assert "requirements/install.sh" in named
    brought = set(loaded(name)["file_mounts"].values())
    assert all((ROOT / path).is_file() and path.split("/")[0] in brought for path in named)


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_install_the_lock_for_gpus_and_the_head_starts_the_autoscaler(name: str) -> None:
    assert "bash ~/lm-rrg/requirements/install.sh python3.11 ~/lm-rrg-venv gpu" in commands(name)
    started = [command for command in commands(name) if "ray start" in command]
    assert len(started) == 2
    assert all("ulimit -n 65536;" in command and "--disable-usage-stats" in command for command in started)
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in started[0]
    assert "--address=$RAY_HEAD_IP:6379" in started[1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_asks_for_a_token_that_stands_in_no_file_of_the_project(name: str) -> None:
    assert any("RAY_AUTH_MODE=token" in command and "~/.bashrc" in command for command in commands(name))
    assert "chmod 600 ~/.ray/auth_token" in commands(name)
    assert "RAY_AUTH_TOKEN=" not in text(name)


@pytest.mark.parametrize("name", FILES)
def test_nothing_listens_to_everybody(name: str) -> None:
    assert "0.0.0.0" not in text(name)


@pytest.mark.parametrize("name", [*LAUNCHED, "deploy/kuberay.yaml", "deploy/slurm.sh"])
def test_the_dashboard_is_on_loopback(name: str) -> None:
    assert re.findall(r"dashboard-host[=:] ?([\d.]+)", text(name)) == ["127.0.0.1"]


def test_all_ways_of_ray_up_give_the_jobs_one_environment() -> None:
    (cloud,), (local,) = ([c for c in commands(name) if ".bashrc" in c] for name in LAUNCHED)
    assert cloud == local
    assert loaded("cluster.yaml")["file_mounts"] == loaded("deploy/local.yaml")["file_mounts"]


def test_own_machines_have_each_role_once() -> None:
    provider = loaded("deploy/local.yaml")["provider"]
    roles = re.findall(r"([\d.]+)\) roles='{\"(\w+)\": 8}';;", text("deploy/local.yaml"))
    assert [address for address, _ in roles] == provider["worker_ips"]
    assert [role for _, role in roles] == list(ROLES)


class TestKubeRay:
    @pytest.fixture
    def spec(self) -> dict[str, Any]:
        manifest = loaded("deploy/kuberay.yaml")
        assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
        spec: dict[str, Any] = manifest["spec"]
        return spec

    def test_the_groups_are_the_node_types_of_cluster_yaml(self, spec: dict[str, Any]) -> None:
        assert [group["groupName"] for group in spec["workerGroupSpecs"]] == list(ROLES)
        for group in spec["workerGroupSpecs"]:
            role = group["groupName"]
            type_ = node_types()[role]
            assert group["minReplicas"] == group["replicas"] == type_["min_workers"]
            assert group["maxReplicas"] == type_["max_workers"]
            # KubeRay puts the value on a shell's command line: JSON in quotes of its own.
            custom = yaml.safe_load(yaml.safe_load(group["rayStartParams"]["resources"]))
            assert custom == {role: type_["resources"][role]}

    def test_pods_fit_the_instances_of_cluster_yaml(self, spec: dict[str, Any]) -> None:
        groups = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        for name, group in groups.items():
            cpus, memory, gpus, _ = INSTANCES[node_types()[name]["node_config"]["InstanceType"]]
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert limits["cpu"] < cpus
            assert int(limits["memory"].removesuffix("Gi")) < memory
            assert limits["nvidia.com/gpu"] == gpus

    def test_nothing_but_the_driver_runs_on_the_head_and_everybody_needs_the_token(self, spec: dict[str, Any]) -> None:
        parameters = spec["headGroupSpec"]["rayStartParams"]
        assert (parameters["num-cpus"], parameters["num-gpus"]) == ("0", "0")
        assert spec["authOptions"] == {"mode": "token"}
        assert f"ray[default,rllib]=={spec['rayVersion']}" in text("requirements/base.in").splitlines()

    def test_all_pods_have_the_same_image_and_share_a_volume(self, spec: dict[str, Any]) -> None:
        pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
        assert len({pod["containers"][0]["image"] for pod in pods}) == 1
        for pod in pods:
            (mount,) = pod["containers"][0]["volumeMounts"]
            assert mount["mountPath"] == "/shared"
            assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]

    def test_the_image_has_the_code_that_ray_up_brings_to_nodes(self) -> None:
        copied = set(re.findall(r"^COPY (\S+) /opt/lm-rrg/\1$", text("deploy/Dockerfile"), re.MULTILINE))
        mounts = loaded("cluster.yaml")["file_mounts"].values()
        assert copied == {path for path in mounts if not path.startswith("~")}
