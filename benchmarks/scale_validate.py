"""The simulation against real runs on this machine.

Contract: `validate` does one calibration run (one actor, one reward worker, synchronous), takes every cost of the
simulation from it, predicts runs with other numbers of actors, reward workers and other staleness, does those runs too,
and prints both. Reward workers are servers that sleep so many seconds a pair (`benchmarks.slow_reward`) and compute
besides, so that more of them are really faster; actors, learner and what the servers compute share the machine's cores.
How many cores a role keeps busy is read from the CPU times of its processes in the calibration run; all other processes
(driver, Ray) are taken off the cores. Runs that are finished are not done again. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Final

import numpy as np
import psutil
from rich.console import Console

from benchmarks.asynchrony import WARM_UP, run_job, short_run, slow_server, timed_steps
from benchmarks.scale_pipeline import Costs, simulate, visual_tokens
from configs.load import compose_config
from configs.schema import Config
from learner.evaluation.tables import filled_table, markdown_table
from rrg.errors import UserError

Setting = tuple[int, int, int]
"""Rollout actors, reward workers, `rollout.max_staleness`."""

BOUND: Final = 0.2
_SECONDS_PER_PAIR: Final = 0.05
_STEPS: Final = 16
_CALIBRATION: Final = (1, 1, 0)
PREDICTED: Final = ("1,2,0", "1,3,0", "2,1,0", "3,3,0", "1,1,1", "1,2,1", "2,2,1", "3,1,1", "3,3,1")
# A word in the title of a process that tells its role.
_TITLES: Final = {"VLLMEnvRunner": "rollout", "DeepSpeedRank": "learner", "slow_reward": "reward"}
_READ: Final = (
    "seconds_step", "seconds_update", "seconds_sync", "samples", "length_mean", "idle_rollout", "idle_learner",
    "idle_reward",
)  # fmt: skip
# What a token that is only read costs against one that is written: vLLM on CPUs in batches.
_READ_SHARE: Final = 1 / 3
# The recipe for this machine has no context in its prompts.
_INSTRUCTION_TOKENS: Final = 2


@dataclass(frozen=True)
class Usage:
    """CPU seconds by role (`other`: everything else that the benchmark started) and wall time of the timed steps."""

    cpu_s: dict[str, float]
    wall_s: float


def validate(
    out: Path, start: Path | None, predicted: Sequence[str], overrides: Sequence[str], console: Console
) -> int:
    """Does the runs of the settings ("actors,workers,staleness"), prints predicted and measured samples a second and
    writes `validation.md`. 1 if a prediction is beyond the bound. Without `start` every run makes its own warm start.
    """
    settings = [_CALIBRATION, *map(_setting, predicted)]
    out.mkdir(parents=True, exist_ok=True)
    common = [*short_run(_STEPS, start), "reward.timeout_s=600", *overrides]
    _run_all(out, settings, common)
    calibration = timed_steps(_folder(out, _CALIBRATION))
    costs = calibrated(compose_config(common), calibration, _usage(out), os.cpu_count() or 1)
    console.print("Costs, from the calibration run: " + _line(asdict(costs)), soft_wrap=True, highlight=False)
    rows, errors = [], []
    for setting in settings:
        simulated = simulate(_config(common, setting), costs, steps=_STEPS, warm_up=WARM_UP).samples_per_s
        steps = timed_steps(_folder(out, setting))
        measured = sum(step["samples"] for step in steps) / sum(step["seconds_step"] for step in steps)
        errors.append(simulated / measured - 1)
        name = "calibration" if setting == _CALIBRATION else "prediction"
        rows.append([name, *map(str, setting), f"{measured:.2f}", f"{simulated:.2f}", f"{100 * errors[-1]:+.1f} %"])
    header = ["", "actors", "reward workers", "max. staleness", "samples/s measured", "simulated", "error"]
    console.print(filled_table(header, rows))
    (out / "validation.md").write_text(markdown_table(header, rows), encoding="utf-8")
    within = sum(abs(error) <= BOUND for error in errors[1:])
    console.print(f"{within} of {len(errors) - 1} predictions within {100 * BOUND:.0f} %")
    return 0 if within == len(errors) - 1 else 1


def calibrated(cfg: Config, steps: Sequence[Mapping[str, float]], usage: Usage, cores: int) -> Costs:
    """The costs by the timed steps (rows of metrics.jsonl) of one actor and one worker in turns with the learner."""
    mean = {name: float(np.mean([step[name] for step in steps])) for name in _READ}
    step_s, samples, studies = mean["seconds_step"], mean["samples"], cfg.learner.rl.studies_per_step
    busy = {role: (1 - mean[f"idle_{role}"]) * step_s for role in ("rollout", "learner", "reward")}
    publish_s = busy["learner"] - mean["seconds_update"]
    sync_s = mean["seconds_sync"] - publish_s
    prompt, report = visual_tokens(cfg) + _INSTRUCTION_TOKENS, mean["length_mean"]
    token_s = (busy["rollout"] - sync_s) / (samples * report + _READ_SHARE * studies * prompt)
    sleeping_s = _SECONDS_PER_PAIR * samples
    cpu = {role: seconds / usage.wall_s * step_s for role, seconds in usage.cpu_s.items()}
    return Costs(
        prompt_tokens=prompt,
        report_tokens=report,
        sequences=cfg.rollout.max_num_seqs,
        sequence_s=token_s,
        prefill_token_s=_READ_SHARE * token_s,
        pair_sleep_s=_SECONDS_PER_PAIR,
        pair_s=(busy["reward"] - sleeping_s) / samples,
        update_token_s=mean["seconds_update"] / (studies * prompt + samples * report),
        publish_s=publish_s,
        sync_s=sync_s,
        rollout_threads=cpu["rollout"] / busy["rollout"],
        reward_threads=cpu["reward"] / (busy["reward"] - sleeping_s),
        learner_threads=cpu["learner"] / busy["learner"],
        cores=cores - cpu["other"] / step_s,
    )


def _setting(text: str) -> Setting:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise UserError(f"--settings {text}: it takes ACTORS,WORKERS,STALENESS, for example 2,2,1")
    actors, workers, staleness = map(int, parts)
    return actors, workers, staleness


def _folder(out: Path, setting: Setting) -> Path:
    actors, workers, staleness = setting
    return out / f"actors{actors}-workers{workers}-k{staleness}"


def _overrides(setting: Setting) -> list[str]:
    return [f"rollout.num_actors={setting[0]}", f"rollout.max_staleness={setting[2]}"]


def _config(common: Sequence[str], setting: Setting) -> Config:
    return compose_config([*common, *_overrides(setting), f"reward.num_workers={setting[1]}"])


def _run_all(out: Path, settings: Sequence[Setting], common: Sequence[str]) -> None:
    """Those that are not finished yet, one after the other."""
    left = [setting for setting in settings if not (_folder(out, setting) / "summary.json").is_file()]
    with ExitStack() as servers:
        most = max((workers for _, workers, _ in left), default=0)
        addresses = [servers.enter_context(slow_server(_SECONDS_PER_PAIR)) for _ in range(most)]
        for setting in left:
            folder, asked = _folder(out, setting), ",".join(addresses[: setting[1]])
            with _watched(folder / "metrics.jsonl", folder.with_suffix(".cpu.json")):
                run_job(folder, [*common, f"reward.address='{asked}'", *_overrides(setting)])


def _usage(out: Path) -> Usage:
    return Usage(**json.loads(_folder(out, _CALIBRATION).with_suffix(".cpu.json").read_text(encoding="utf-8")))


@contextmanager
def _watched(metrics: Path, kept: Path) -> Iterator[None]:
    """Writes the `Usage` of the timed steps to `kept`: from when the last of the first steps is in `metrics` on."""
    ended = threading.Event()
    seen: dict[int, tuple[float, dict[str, float]]] = {}

    def watch() -> None:
        while not ended.wait(0.2):
            steps = metrics.read_text(encoding="utf-8").count('"phase": "rl"') if metrics.is_file() else 0
            if steps not in seen:
                seen[steps] = monotonic(), cpu_seconds()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    (started, before), (stopped, after) = seen[WARM_UP], seen[_STEPS]
    usage = Usage({role: after[role] - before[role] for role in after}, stopped - started)
    kept.write_text(json.dumps(asdict(usage)), encoding="utf-8")


def cpu_seconds() -> dict[str, float]:
    """Of all processes that this one has started, so far, by role."""
    found: defaultdict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended in this moment
            title, times = " ".join(process.cmdline()), process.cpu_times()
            role = next((role for word, role in _TITLES.items() if word in title), "other")
            found[role] += times.user + times.system
    return found


def _line(costs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in costs.items())
