"""Several machines in one: here `ray up`, `ray stop` and the like do for real what they do, and to nobody else.

Contract: machines are network, process and mount namespaces (`machines.sh`), each with an sshd; commands run on one
more, from which the others are reached. Processes see those of their own machine only; all end with the context.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv"
START_S = 60
_SCRIPT = Path(__file__).with_name("machines.sh")
_NEEDED = ("setpriv", "unshare", "nsenter", "ip", "sshd", "ssh", "ssh-keygen", "rsync")
_NAMESPACES = ("--mount", "--net", "--pid")
_PATH = f"{VENV}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_SSHD = """
HostKey /mnt/host
AuthorizedKeysFile /mnt/id.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
"""


def missing() -> str | None:
    """Why there can be no such machines here; None: there can."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    lacking = [name for name in _NEEDED if shutil.which(name, path=_PATH) is None]
    if lacking:
        return f"needs {', '.join(lacking)} (Debian: apt-get install openssh-server rsync iproute2)"
    tried = subprocess.run(["unshare", *_NAMESPACES, "--fork", "true"], capture_output=True, text=True)
    return f"the kernel gives no namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Launcher:
    """The machine from which the others are reached, by the first of its processes."""

    first: int

    def run(self, *command: str | Path, timeout_s: float, status: int = 0) -> str:
        """Runs a command there, in the repository, and gives what it printed."""
        entered = ["nsenter", "-t", str(self.first), *_NAMESPACES, f"--wd={ROOT}"]
        done = subprocess.run(
            [*entered, *command],
            env={"HOME": "/srv", "PATH": _PATH, "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == status, f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}"
        return done.stdout

    def on(self, address: str, command: str, *, timeout_s: float = 60.0, status: int = 0) -> str:
        """Runs a command of the shell on another machine."""
        ssh = ("ssh", "-q", "-o", "StrictHostKeyChecking=no", "-i", "/mnt/id", f"root@{address}")
        return self.run(*ssh, command, timeout_s=timeout_s, status=status)


@contextmanager
def machines(folder: Path, addresses: Sequence[str]) -> Iterator[Launcher]:
    """Starts machines with these addresses. `folder` is /mnt on all of them, `folder`/shared their file system."""
    (folder / "shared").mkdir()
    (folder / "sshd_config").write_text(_SSHD)
    for key in ("id", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    # They end with this process, however it ends.
    command = ["setpriv", "--pdeathsig=KILL", "unshare", *_NAMESPACES, "--fork", "--mount-proc", "--kill-child"]
    with (folder / "machines.log").open("w") as log:
        process = subprocess.Popen([*command, "bash", _SCRIPT, folder, *addresses], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while not (folder / "ready").exists():
            said = (folder / "machines.log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, f"waited {START_S} s for the machines: {said}"
            time.sleep(0.1)
        (first,) = psutil.Process(process.pid).children()
        yield Launcher(first.pid)
    finally:
        process.kill()  # and with it the first process of its namespace, and so all of them
        process.wait(START_S)
