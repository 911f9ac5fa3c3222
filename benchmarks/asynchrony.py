"""What asynchronous RL gains: the same steps with `rollout.max_staleness` 0 and 1, with a fast and with a slow reward.

`python -m benchmarks.asynchrony --out DIR [--start RUN_DIR] [--steps 12] [--seconds-per-pair 0.05] [OVERRIDE ...]`:
runs `learner.main` four times, each over the same studies, and prints for each the samples a second, the seconds a
step, the idle share of every role (`idle_*` of metrics.jsonl, means over the steps after the first two) and the
speed-up. The slow reward is `benchmarks.slow_reward`, which sleeps and takes no core. On few cores the roles share what
there is: the speed-up is that of the waiting that is filled, not of more hardware.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from learner.evaluation.tables import filled_table, markdown_table
from rrg.progress import output_console

WARM_UP: Final = 2
_IDLE: Final = ("idle_rollout", "idle_learner", "idle_reward")
# Evaluation is not what is measured: as little of it as there may be.
_QUICK: Final = (
    "evaluation.controls=false",
    "data.limit_test=8",
    "learner.rl.evaluate_every=0",
    "evaluation.bootstrap=10",
)


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(arguments)
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    common = [*short_run(args.steps, None if args.start is None else Path(args.start)), *args.overrides]
    for staleness in (0, 1):
        run_job(out / f"fast-k{staleness}", [*common, f"rollout.max_staleness={staleness}"])
    with slow_server(args.seconds_per_pair) as address:
        slow = [*common, f"reward.address={address}", "reward.timeout_s=600"]
        for staleness in (0, 1):
            run_job(out / f"slow-k{staleness}", [*slow, f"rollout.max_staleness={staleness}"])
    header = ["reward", "max. staleness", "seconds a step", "samples/s", "speed-up", *(f"{n} idle" for n in _roles())]
    rows = []
    for kind in ("fast", "slow"):
        base = _step_seconds(out / f"{kind}-k0")
        for staleness in (0, 1):
            folder = out / f"{kind}-k{staleness}"
            seconds = _step_seconds(folder)
            idle = [f"{100 * _mean(folder, name):.0f} %" for name in _IDLE]
            rate = f"{_mean(folder, 'samples') / seconds:.1f}"
            rows.append([kind, str(staleness), f"{seconds:.2f}", rate, f"{base / seconds:.2f}", *idle])
    console = output_console()
    console.print(filled_table(header, rows))
    (out / "table.md").write_text(markdown_table(header, rows), encoding="utf-8")
    return 0


def _roles() -> list[str]:
    return [name.removeprefix("idle_") for name in _IDLE]


def short_run(steps: int, start: Path | None) -> list[str]:
    """The overrides of a run that is timed, from the warm start of the run in `start`, or its own."""
    begin = (
        [] if start is None else [f"start={start.resolve()}", "learner.sft.regions_epochs=0", "learner.sft.epochs=0"]
    )
    return [f"learner.rl.steps={steps}", "learner.rl.checkpoint_every=1000", *_QUICK, *begin]


def run_job(folder: Path, overrides: Sequence[str]) -> None:
    """One run, if it is not finished yet. Raises CalledProcessError where it fails; its log stands beside it."""
    if (folder / "summary.json").is_file():
        return
    with folder.with_suffix(".log").open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "learner.main", *overrides, f"output_dir={folder}"]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)


@contextmanager
def slow_server(seconds_per_pair: float) -> Iterator[str]:
    """The address of a `benchmarks.slow_reward` that runs meanwhile."""
    command = [sys.executable, "-m", "benchmarks.slow_reward", "--seconds-per-pair", str(seconds_per_pair)]
    # One thread, as a run's own reward worker has.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def timed_steps(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's RL steps after the first ones."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["phase"] == "rl"][WARM_UP:]


def _mean(folder: Path, name: str) -> float:
    return float(np.mean([row[name] for row in timed_steps(folder)]))


def _step_seconds(folder: Path) -> float:
    return _mean(folder, "seconds_step")


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.asynchrony", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--out", required=True, metavar="DIR", help="folder of the runs and the table")
    made.add_argument("--start", metavar="RUN_DIR", help="warm start to begin at (without: every run makes its own)")
    made.add_argument("--steps", type=int, default=12, metavar="N", help="RL steps of each run (%(default)s)")
    made.add_argument("--seconds-per-pair", type=float, default=0.05, metavar="S", help="slow reward (%(default)s)")
    made.add_argument("overrides", nargs="*", help="as learner.main takes them, for every run")
    return made


if __name__ == "__main__":
    sys.exit(main())
