"""`ray up`, a training job, `ray submit` and `ray down` for real: deploy/local.yaml on machines made of namespaces.

Only the user, the key, the shared folder, the environment (it is here already) and the object store's size differ from
the file.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.machines import ROOT, VENV, Launcher, machines, missing

HEAD, LEARNER, ROLLOUT, REWARD = (f"192.168.0.{last}" for last in (10, 11, 12, 13))
CHANGES = {
    "ssh_user: ubuntu": "ssh_user: root",
    "~/.ssh/id_ed25519": "/mnt/id",
    "=/shared/": "=/mnt/shared/",
    "bash ~/lm-rrg/requirements/install.sh python3.11 ~/lm-rrg-venv gpu": f"ln -sfn {VENV} ~/lm-rrg-venv",
    "--disable-usage-stats": "--disable-usage-stats --object-store-memory=300000000",
}
CONFIG = "/mnt/local.yaml"
UP_S, JOB_S, DOWN_S = 600, 1500, 180
RUN = "/mnt/shared/run"
JOB = (
    f"+exp=smoke cluster=fixed output_dir={RUN} evaluation.controls=false learner.sft.regions_epochs=0.5 "
    "learner.sft.epochs=0.5 learner.rl.steps=2 learner.rl.evaluate_every=0 learner.rl.stop.patience=null"
)
LOOK = """
import json, ray
ray.init(address="auto", logging_level="ERROR")
shown = ("CPU", "GPU", "learner", "rollout", "reward")
alive = {node["NodeManagerAddress"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
print(json.dumps({address: {name: has.get(name, 0) for name in shown} for address, has in alive.items()}))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class Cluster:
    launcher: Launcher
    folder: Path

    def exec(self, command: str, *, timeout_s: float = 300.0, status: int = 0) -> str:
        return self.launcher.run("ray", "exec", CONFIG, command, timeout_s=timeout_s, status=status)

    def nodes(self) -> dict[str, dict[str, float]]:
        """The living nodes by their address, and what they have."""
        (self.folder / "shared" / "look.py").write_text(LOOK)
        said = self.exec("python /mnt/shared/look.py")
        found: dict[str, dict[str, float]] = json.loads(re.findall(r"^{.*}", said, re.MULTILINE)[-1])
        return found

    def ray_processes(self, address: str) -> list[str]:
        said = self.launcher.on(address, "ps -eo args")
        return [line for line in said.splitlines() if "/ray/" in line or line.startswith("ray::")]


def until(true: Callable[[], bool], what: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (why := missing()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("machines")
    text = (ROOT / "deploy/local.yaml").read_text()
    for written, here in CHANGES.items():
        assert written in text
        text = text.replace(written, here)
    (folder / "local.yaml").write_text(text)
    with machines(folder, (HEAD, LEARNER, ROLLOUT, REWARD)) as launcher:
        launcher.run("ray", "get-auth-token", "--generate", timeout_s=UP_S)
        began = time.monotonic()
        launcher.run("ray", "up", "--yes", CONFIG, timeout_s=UP_S)
        print(f"ray up: {time.monotonic() - began:.0f} s")
        found = Cluster(launcher, folder)
        until(lambda: len(found.nodes()) == 4, "all nodes", UP_S)
        print(f"all nodes: {time.monotonic() - began:.0f} s")
        yield found


def test_every_machine_has_its_role_and_the_head_has_none(cluster: Cluster) -> None:
    nodes = cluster.nodes()
    roles = {address: {role: n for role, n in has.items() if n and role != "CPU"} for address, has in nodes.items()}
    assert roles == {HEAD: {}, LEARNER: {"learner": 8}, ROLLOUT: {"rollout": 8}, REWARD: {"reward": 8}}
    assert nodes[HEAD]["CPU"] == 0


def test_only_who_has_the_token_gets_in_and_only_its_user_reads_it(cluster: Cluster) -> None:
    for address in (HEAD, LEARNER):
        assert cluster.launcher.on(address, "stat --format=%a ~/.ray/auth_token").strip() == "600"
    said = cluster.exec("RAY_AUTH_TOKEN=00000000000000000000000000000000 ray status", status=1)
    assert "auth" in said.lower()
    assert "reward" not in said


def test_the_dashboard_answers_on_the_head_alone(cluster: Cluster) -> None:
    ask = "python3 -c 'import socket, sys; socket.create_connection((sys.argv[1], 8265), timeout=5)'"
    cluster.launcher.on(HEAD, f"{ask} 127.0.0.1")
    assert "refused" in cluster.launcher.on(HEAD, f"{ask} {HEAD} 2>&1", status=1)
    assert "refused" in cluster.launcher.on(LEARNER, f"{ask} {HEAD} 2>&1", status=1)


def test_a_job_runs_with_each_role_on_its_own_machine(cluster: Cluster) -> None:
    began = time.monotonic()
    said = cluster.exec(f"cd ~/lm-rrg && python -m learner.main {JOB}", timeout_s=JOB_S)
    print(f"the job: {time.monotonic() - began:.0f} s")
    for role, address in (("learner", LEARNER), ("rollout", ROLLOUT), ("reward", REWARD)):
        assert re.search(rf"{role} .*: 1 on {address} ", said), said[-4000:]
    summary = json.loads((cluster.folder / "shared/run/summary.json").read_text())
    assert summary["reward_backend"] == "embedded"
    assert "192.168.0" in said


def test_a_script_is_submitted_with_its_arguments(cluster: Cluster) -> None:
    arguments = ("+exp=smoke", "cluster=fixed", "dry_run=true", "output_dir=/mnt/shared/dry")
    said = cluster.launcher.run("ray", "submit", CONFIG, "learner/main.py", "--", *arguments, timeout_s=300)
    assert "DeepSpeed rank" in said


def test_ray_down_ends_the_head_and_ray_stop_the_other_machines(cluster: Cluster) -> None:
    cluster.launcher.run("ray", "down", "--yes", CONFIG, timeout_s=DOWN_S)
    assert cluster.ray_processes(HEAD) == []
    for address in (LEARNER, ROLLOUT, REWARD):
        cluster.launcher.on(address, "~/lm-rrg-venv/bin/ray stop", timeout_s=DOWN_S)
        assert cluster.ray_processes(address) == []
