"""A whole job under random faults, then the same job undisturbed: both must end with the same weights, bit for bit.

    python -m benchmarks.chaos --minutes 20 --seed 0 --out DIR [GROUP.FIELD=VALUE ...]

Contract: `+exp=smoke` with these overrides runs as a process of its own; every few seconds, once it has got on, one of
`FAULTS` hits it (`kill -9`, `SIGSTOP`, `SIGTERM`, a flipped bit in its newest checkpoint), and where that ends it, it
is resumed. Prints a line a fault: seconds, RL steps done, what, whom (pid), what came of it. Status 1 where it hung,
ended with another status than docs/faults.md says, lost or doubled a step or a sample, or ended with other weights.
With `rollout.max_staleness` above 0 there is nothing to compare the weights with. Only processes below the job are hit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from learner.checkpoints import latest_checkpoint

ROOT: Final = Path(__file__).parents[1]
SMALL: Final = (
    "+exp=smoke", "evaluation.controls=false", "data.limit_test=8", "learner.sft.regions_epochs=0.5",
    "learner.sft.epochs=0.5", "learner.rl.checkpoint_every=1", "learner.rl.evaluate_every=0",
)  # fmt: skip
SAMPLES: Final = 16
"""Of a step of `smoke`."""
PROGRESS_S: Final = 600.0
"""The longest that a run may go without a finished step: a start, and the longest time-out that a fault may cost."""
END_S: Final = 150.0
"""The longest from a fault that ends a run to its end."""
STOPPED_S: Final = (1.0, 20.0)
"""How long a process that is stopped stays so."""


class Job:
    """`python -m learner.main ARGUMENTS` in a session of its own, its output in `<run_dir>.log`."""

    def __init__(self, run_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.run_dir, self.log = run_dir, run_dir.with_suffix(".log")
        self._file = self.log.open("a")
        where = f"resume={run_dir}" if (run_dir / "config.yaml").exists() else f"output_dir={run_dir}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "learner.main", *arguments, where],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._from = self.log.stat().st_size

    @property
    def output(self) -> str:
        """What this process has printed so far."""
        return self.log.read_text(errors="replace")[self._from :]

    def rows(self, phase: str = "rl") -> list[dict[str, Any]]:
        return recorded(self.run_dir, phase)

    def processes(self, title: str) -> list[psutil.Process]:
        """Those below the job whose title, as Ray sets it, begins with `ray::TITLE`."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                found += [child] if "".join(child.cmdline()[:1]).startswith(f"ray::{title}") else []
            except psutil.Error:
                continue
        return found

    def wait_until(self, condition: Callable[[], object], what: str, timeout_s: float = PROGRESS_S) -> None:
        """Looks every few milliseconds; AssertionError where the job ends before, or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, (
                f"ended with {self.process.returncode}, waiting for {what}: {self._tail}"
            )
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}: {self._tail}"
            time.sleep(0.005)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: len(self.rows()) >= step, f"RL step {step}")

    def wait_for_another_step(self) -> None:
        done = len(self.rows())
        self.wait_until(lambda: len(self.rows()) > done, f"RL step {done + 1}")

    def end(self, status: int, timeout_s: float = PROGRESS_S) -> str:
        """Waits for the end with this status; the output."""
        try:
            ended = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout_s:g} s: {self._tail}") from None
        assert ended == status, f"ended with {ended}, not {status}: {self._tail}"
        return self.output

    def close(self) -> None:
        """Ends the job and all below it, if they still run."""
        self._file.close()
        if self.process.poll() is None:
            below = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
            for child in below:
                if child.is_running():
                    child.kill()

    @property
    def _tail(self) -> str:
        return self.output[-3000:]


def recorded(run_dir: Path, phase: str = "rl") -> list[dict[str, Any]]:
    """The rows of a phase in `metrics.jsonl`; a line that is being written is left out."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [row for row in map(json.loads, lines) if row["phase"] == phase]


def weights(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of the weights in a checkpoint, by file."""
    files = sorted((checkpoint / "policy").rglob("*.safetensors"))
    return {str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip_a_bit(path: Path) -> None:
    """In the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@dataclass(frozen=True)
class Fault:
    """Hits one process with the title (None: the job itself). `ends`: the status with which the job ends then."""

    name: str
    title: str | None
    signum: int
    ends: int | None = None
    damages: bool = False


FAULTS: Final = (
    Fault("kill -9 of a rollout actor", "VLLMEnvRunner", signal.SIGKILL),
    Fault("kill -9 of a reward worker", "RewardWorkerImpl", signal.SIGKILL),
    Fault("kill -9 of the reward directory", "RewardDirectoryImpl", signal.SIGKILL),
    Fault("a rollout actor stands still", "VLLMEnvRunner", signal.SIGSTOP),
    Fault("a reward worker stands still", "RewardWorkerImpl", signal.SIGSTOP),
    Fault("a learner rank stands still", "DeepSpeedRank", signal.SIGSTOP),
    Fault("kill -9 of a learner rank", "DeepSpeedRank", signal.SIGKILL, ends=4),
    Fault("kill -9 of the driver", None, signal.SIGKILL, ends=-signal.SIGKILL),
    Fault("kill -9 of the driver, a bit of its newest checkpoint flipped", None, signal.SIGKILL, -signal.SIGKILL, True),
    Fault("SIGTERM", None, signal.SIGTERM, ends=143),
)


def hit(job: Job, fault: Fault, rng: random.Random) -> tuple[int, str]:
    """Does it; whom, and what came of it. After a fault that ends the job it has ended."""
    targets = [psutil.Process(job.process.pid)] if fault.title is None else job.processes(fault.title)
    if not targets:
        return 0, "nobody there: it is being replaced"
    target = rng.choice(targets)
    target.send_signal(fault.signum)
    if fault.signum == signal.SIGSTOP:
        seconds = rng.uniform(*STOPPED_S)
        time.sleep(seconds)
        target.send_signal(signal.SIGCONT)
        return target.pid, f"for {seconds:.1f} s"
    if fault.ends is None:
        return target.pid, "goes on"
    began = time.monotonic()
    job.end(fault.ends, END_S)
    outcome = f"ended after {time.monotonic() - began:.1f} s with status {fault.ends}"
    newest = latest_checkpoint(job.run_dir / "checkpoints")
    if fault.damages and newest is not None:
        damaged = rng.choice([path for path in sorted(newest.rglob("*")) if path.is_file()])
        flip_a_bit(damaged)
        outcome += f", damaged {damaged.relative_to(job.run_dir)}"
    return target.pid, outcome


def disturbed(run_dir: Path, minutes: float, seed: int, arguments: Sequence[str]) -> int:
    """Runs the job under faults for so long and ends it; the RL steps that it has done."""
    rng, started = random.Random(seed), time.monotonic()
    job = Job(run_dir, *arguments)
    try:
        while time.monotonic() < started + 60 * minutes:
            job.wait_for_another_step()
            time.sleep(rng.uniform(0.0, 4.0))
            fault = rng.choice(FAULTS)
            steps = len(job.rows())
            pid, outcome = hit(job, fault, rng)
            print(
                f"{time.monotonic() - started:7.1f} s  step {steps:4}  {fault.name} (pid {pid}): {outcome}", flush=True
            )
            if fault.ends is not None:
                job.close()
                job = Job(run_dir)
        job.wait_for_another_step()
        job.process.send_signal(signal.SIGTERM)
        job.end(143, END_S)
        return len(job.rows())
    finally:
        job.close()


def check(run_dir: Path, steps: int, arguments: Sequence[str]) -> list[str]:
    """What is wrong with the run that has done so many steps under faults."""
    rows = recorded(run_dir)
    problems = []
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        problems.append("a step is missing or stands there twice")
    problems += [
        f"step {row['step']}: {row['samples']:g} samples, {row['failed']:g} failed"
        for row in rows
        if row["samples"] != SAMPLES or row["failed"]
    ]
    if rows and "staleness_1" in rows[-1]:
        return problems
    whole = run_dir.with_name(f"{run_dir.name}-undisturbed")
    job = Job(whole, *arguments, f"learner.rl.steps={steps}")
    try:
        job.end(0, timeout_s=24 * 3600.0)
    finally:
        job.close()
    newest, other = (latest_checkpoint(folder / "checkpoints") for folder in (run_dir, whole))
    assert newest is not None
    assert other is not None
    return problems + (
        [] if weights(newest) == weights(other) else ["its weights differ from those of the undisturbed run"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and their logs")
    parser.add_argument("overrides", nargs="*", metavar="GROUP.FIELD=VALUE")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    run_dir, arguments = args.out.absolute() / "run", [*SMALL, *args.overrides]
    steps = disturbed(run_dir, args.minutes, args.seed, [*arguments, "learner.rl.steps=100000"])
    problems = check(run_dir, steps, arguments)
    print(f"{steps} RL steps: {'; '.join(problems) or 'none lost, none doubled, the weights of an undisturbed run'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
