"""deploy/slurm.sh as Slurm runs it, with programs in place of Slurm's and Ray's that write down what they are told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm.sh"
WAIT_S = 120
# Between the words of a command that was written down.
SEPARATOR = "\x1f"
# Steps of the job last until they are killed. The driver stands for learner.main: it saves when it is told to end.
PROGRAMS = {
    "scontrol": 'printf "%s\\n" ${3//,/ }',
    "hostname": "echo 10.0.0.1 fe80::1",
    "srun": """
        trap 'kill $!; note ended; exit' TERM
        sleep 600 &
        note srun "$@"
        wait
    """,
    "ray": 'note ray "$@"',
    "python": """
        if [ "$1" = -c ]; then exec "$PYTHON" "$@"; fi
        nodes=${SLURM_JOB_NODELIST//[^,]/}
        until [ "$(grep -c ^srun "$NOTES/calls")" -gt ${#nodes} ]; do sleep 0.1; done
        stat --format=%a "$RAY_AUTH_TOKEN_PATH" >"$NOTES/mode"
        cp "$RAY_AUTH_TOKEN_PATH" "$NOTES/token"
        env >"$NOTES/env"
        trap 'kill $!; note saved; exit 143' TERM
        if [ -n "${LASTS:-}" ]; then sleep 600 & fi
        note python "$@"
        if [ -n "${LASTS:-}" ]; then wait; fi
        exit "${STATUS:-0}"
    """,
}


class Job:
    """A job of Slurm: `calls` are the commands that it has run, as lists of words."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "notes"
        self.notes.mkdir()
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        note = f"note() {{ local IFS=$'{SEPARATOR}'; printf '%s\\n' \"$*\" >>\"$NOTES/calls\"; }}"
        for name, body in PROGRAMS.items():
            (programs / name).write_text(f"#!/usr/bin/env bash\n{note}\n{body}\n")
            (programs / name).chmod(0o755)
        self.env = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "NOTES": str(self.notes),
            "PYTHON": sys.executable,
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "n1,n2",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_CPUS_PER_TASK": "32",
        }

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", SCRIPT, *arguments], env=self.env | env, capture_output=True, text=True, timeout=WAIT_S
        )

    def calls(self, program: str) -> list[list[str]]:
        path = self.notes / "calls"
        found = [line.split(SEPARATOR) for line in path.read_text().splitlines()] if path.exists() else []
        return [words for name, *words in found if name == program]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def option(call: list[str], name: str) -> str:
    (value,) = (word.partition("=")[2] for word in call if word.startswith(f"{name}="))
    return value


def test_the_script_is_what_bash_and_shellcheck_take() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here (Debian: apt-get install shellcheck)")
    subprocess.run(["shellcheck", SCRIPT, SCRIPT.parents[1] / "tests/cluster/machines.sh"], check=True)


def test_every_node_gets_its_roles_and_the_first_one_the_head(job: Job) -> None:
    done = job.run()
    assert done.returncode == 0, done.stderr
    head, other = sorted(job.calls("srun"), key=lambda call: option(call, "--nodelist"))
    assert [option(call, "--nodelist") for call in (head, other)] == ["n1", "n2"]
    assert json.loads(option(head, "--resources")) == {"learner": 4}
    assert json.loads(option(other, "--resources")) == {"rollout": 4, "reward": 4}
    assert "--head" in head
    assert "--head" not in other
    address = f"{option(head, '--node-ip-address')}:{option(head, '--port')}"
    assert address == option(other, "--address") == "10.0.0.1:24711"
    assert all((option(call, "--num-gpus"), option(call, "--num-cpus")) == ("4", "32") for call in (head, other))


def test_the_driver_gets_the_arguments_and_the_address_and_waits_for_nodes_of_the_roles(job: Job) -> None:
    assert job.run("+exp=mimic_rl", "data.root=/data with a space").returncode == 0
    (call,) = job.calls("python")
    assert call[:2] == ["-m", "learner.main"]
    assert call[-2:] == ["+exp=mimic_rl", "data.root=/data with a space"]
    assert option(call, "cluster.address") == "10.0.0.1:24711"
    assert {f"cluster.{role}_nodes=own" for role in ("learner", "rollout", "reward")} <= set(call)


def test_roles_are_chosen_by_the_node(job: Job) -> None:
    done = job.run(ROLES="learner learner rollout reward", SLURM_JOB_NODELIST="n1,n2,n3,n4", SLURM_GPUS_ON_NODE="8")
    assert done.returncode == 0, done.stderr
    has = {option(call, "--nodelist"): json.loads(option(call, "--resources")) for call in job.calls("srun")}
    assert has == {"n1": {"learner": 8}, "n2": {"learner": 8}, "n3": {"rollout": 8}, "n4": {"reward": 8}}


@pytest.mark.parametrize(
    ("roles", "words"),
    [("learner", "ROLES has 1 words (learner), the job 2 nodes"), ("learner rolout", "rolout is none of")],
)
def test_roles_that_do_not_fit_the_job_are_refused(job: Job, roles: str, words: str) -> None:
    done = job.run(ROLES=roles)
    assert done.returncode != 0
    assert words in done.stderr
    assert job.calls("python") == []


def test_each_job_has_a_token_of_its_own_that_only_its_user_reads_and_that_goes_with_it(job: Job) -> None:
    tokens = set()
    for _ in range(2):
        (job.notes / "calls").unlink(missing_ok=True)
        assert job.run().returncode == 0
        tokens.add((job.notes / "token").read_text())
        assert (job.notes / "mode").read_text().strip() == "600"
        assert list(job.folder.glob(".ray-token*")) == []
    assert len(tokens) == 2
    assert all(len(token) == 64 for token in tokens)
    assert not any(token in (job.notes / "calls").read_text() for token in tokens)
    assert "RAY_AUTH_MODE=token" in (job.notes / "env").read_text().splitlines()


@pytest.mark.parametrize("status", [0, 3])
def test_ray_ends_with_the_run_whose_status_is_that_of_the_job(job: Job, status: int) -> None:
    assert job.run(STATUS=str(status)).returncode == status
    assert len(job.calls("ended")) == 2


def test_a_run_is_told_of_the_end_of_its_time_and_saves(job: Job) -> None:
    running = subprocess.Popen(["bash", SCRIPT], env=job.env | {"LASTS": "1"}, start_new_session=True)
    deadline = time.monotonic() + WAIT_S
    while not job.calls("python"):
        assert time.monotonic() < deadline, "waited for the driver to start"
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)  # as --signal=B:TERM: to the script alone
    assert running.wait(WAIT_S) == 143
    assert job.calls("saved") == [[]]
    assert len(job.calls("ended")) == 2
