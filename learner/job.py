"""The whole job, phase by phase: data, processes, warm start, reinforcement learning, evaluation.

Contract: runs in the driver, which holds no model. Everything that it learns of a run stands in the run directory:
`config.yaml`, `metrics.jsonl`, `tensorboard/`, `initial/` and `warm_start/` (policies), `checkpoints/`,
`samples/validation_*.jsonl`, `samples_{sft,rl}.jsonl` and `evidence_{sft,rl}.jsonl` (reports, and what was seen in the
regions), `per_study_{sft,rl}.csv` (their measures), `summary.json`, `report.html`, and `stopped.json` of a run that
stopped itself.
The roles' own logs are Ray's. `stage` says how far the job goes.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.env import rollout_env
from configs.schema import Config
from learner import placement, plan
from learner.algorithm import ReportRL, ReportRLConfig
from learner.checkpoints import latest_checkpoint, read_state
from learner.evaluating import evaluate_controls, evaluate_policy, evaluate_regions, scalars
from learner.reinforce import reinforce
from learner.report.build import attempt_report
from learner.rewards import connected, require_servers, start_rewards
from learner.run import Run
from learner.sampler import require_studies
from learner.stopping import Interrupted, Signals
from learner.summary import (
    Summary,
    about_run,
    build_regions_summary,
    build_summary,
    print_summary,
    write_summary,
)
from learner.trackers import open_trackers
from learner.tracking import PeakMemory, Tracker
from learner.validation import validation_studies
from reward_server.client import RewardClient
from reward_server.cluster import stay_on_loopback
from rrg.data import StudySet, load_studies
from rrg.errors import ProcessError, RunStoppedError, UserError
from rrg.model.backbone import make_store
from rrg.progress import Show, output_console

RAY_STARTS = 3
"""Ray gives its processes 15 to 30 s to start, then gives up: too little on a machine that is busy for a moment."""

# Makes the summary of what was measured; told about the run as a whole at its end.
Summarize = Callable[[Mapping[str, Any]], Summary]


def run_job(cfg: Config, run_dir: Path) -> None:
    """Runs every phase that the run directory does not hold yet, writes and prints the summary, and writes the report.
    A run that ends before has a report too, without X-rays: it has to end soon.

    Raises:
        Interrupted: a signal ended the run.
        RunStoppedError: the run stopped itself.
    """
    show = Show(output_console())
    show.line(f"run directory: {run_dir}")
    try:
        studies, summary = _phases(cfg, run_dir, show)
    except (Interrupted, RunStoppedError, ProcessError):
        attempt_report(run_dir, (), show.plain)
        raise
    write_summary(run_dir / "summary.json", summary)
    print_summary(summary, show.console)
    attempt_report(run_dir, studies.split("test"), show.plain)
    show.line(f"all of it: {run_dir}")


def _phases(cfg: Config, run_dir: Path, show: Show) -> tuple[StudySet, Summary]:
    with Signals() as signals, PeakMemory() as memory:
        require_servers(cfg)
        with show.phase("data"):
            studies = prepare_data(cfg, show)
        with show.phase("set-up"):
            services = open_trackers(cfg.tracking, dataclasses.asdict(cfg), run_dir, show.plain)
            stack = ExitStack()
            algo, client = stack.enter_context(_started(cfg, run_dir, show, signals))
        with stack:
            checkpoint = latest_checkpoint(run_dir / "checkpoints", verify=True)
            tracker = Tracker(run_dir, _recorded(algo, checkpoint), services)
            stack.push(lambda kind, *_: tracker.close(failed=kind is not None))
            run = Run(cfg, run_dir, studies, algo, client, tracker, show, signals)
            with show.phase("warm start"):
                learn_from_reports(run, checkpoint)
            summarize = regions_only(run) if cfg.stage == "regions" else reports_and_rl(run)
    return studies, summarize(about_run(cfg, show.seconds, memory.peak_gb))


def prepare_data(cfg: Config, show: Show) -> StudySet:
    """Reads the studies (rendering X-rays that are not cached yet) and prepares their images."""
    studies = load_studies(cfg.data, progress=show.advance)
    # Too few of them are told of now, not after the warm start.
    validation_studies(cfg, studies)
    rl = cfg.learner.rl
    if cfg.stage == "all" and rl.steps:
        require_studies(studies.split("train"), count=rl.studies_per_step, abnormal_fraction=rl.abnormal_fraction)
    make_store(cfg.data, cfg.model).prepare(list(studies), progress=show.advance)
    for problem in studies.problems[:10]:
        show.line(f"skipped: {problem.file}: {problem.field}: {problem.reason}")
    counts = ", ".join(f"{name} {len(studies.split(name))}" for name in ("train", "val", "test"))
    show.line(f"studies: {counts}; skipped {len(studies.problems)}")
    for reason, count in studies.skipped.items():
        show.line(f"left out: {count} studies: {reason}")
    return studies


def learn_from_reports(run: Run, checkpoint: Path | None) -> None:
    """The warm start, from its checkpoint if there is one; then gets ready for what comes after it, RL's checkpoint
    included."""
    phase = None if checkpoint is None else read_state(checkpoint).phase
    if run.algo.warm_started:
        run.show.line("warm start: it was done before")
    else:
        warm_start(run, checkpoint)
    run.algo.begin_rl(checkpoint if phase == "rl" else None)
    if checkpoint is not None:
        run.show.line(f"resumed from {checkpoint}: {run.algo.rl_step} RL steps done")


def warm_start(run: Run, checkpoint: Path | None) -> None:
    """Supervised fine-tuning, shown and recorded step by step, and saved between steps where that is due."""
    save = partial(run.algo.save_run, run.checkpoints)

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        run.show.advance("warm-start steps", done, total, metrics)
        run.tracker.log("warm_start", done, metrics)

    def boundary(due: bool) -> None:
        run.signals.leave_if_asked(save)
        if due:
            save()

    with run.signals.finishing_steps():
        run.algo.warm_start(progress, checkpoint, boundary)


def regions_only(run: Run) -> Summarize:
    """What is left to do after stage=regions: to see how well the regions of the test studies are seen."""
    with run.show.phase("evaluation of the regions"):
        return partial(build_regions_summary, evaluate_regions(run))


def reports_and_rl(run: Run) -> Summarize:
    """The evaluation of the warm start, RL and its evaluation (unless the run ends before, or has no step of RL), and
    the controls."""
    cfg, show, rl, regions = run.cfg, run.show, None, {}
    with show.phase("evaluation of the warm start"):
        sft, regions["sft"] = evaluate_policy(run, "sft")
        run.tracker.log("evaluation", 0, scalars(sft))
    if cfg.stage == "all" and (cfg.learner.rl.steps or run.algo.rl_step):
        with show.phase("reinforcement learning"):
            reinforce(run)
        with show.phase("evaluation of the RL policy"):
            rl, regions["rl"] = evaluate_policy(run, "rl")
            run.tracker.log("evaluation", run.algo.rl_step, scalars(rl))
    constant = {}
    if cfg.evaluation.controls:
        with show.phase("controls"):
            constant = evaluate_controls(run)
    backend = run.client.describe().backend
    return lambda about: build_summary(sft, rl, constant, regions, backend, about, cfg.evaluation, cfg.seed)


@contextmanager
def _started(cfg: Config, run_dir: Path, show: Show, signals: Signals) -> Iterator[tuple[ReportRL, RewardClient]]:
    """Ray, the reward workers, the learner's ranks and the rollout actors; all end with the block."""
    for line in plan.describe(cfg).splitlines():
        show.line(f"  {line}")
    # Ray and RLlib warn of what is chosen here on purpose (no spaces, no learner of theirs). One warning stays on the
    # console, "... the actor restart will fail": it is about RLlib's config in the object store, which its group of
    # actors holds as long as they live. RAY_BACKEND_LOG_LEVEL would hide why a process of Ray died, too.
    for name in ("ray", "ray.rllib"):  # which has a level of its own
        logging.getLogger(name).setLevel(logging.ERROR)
    _join_ray(cfg)
    signals.install()
    try:
        if cfg.cluster.address is not None:
            for line in placement.check(cfg, run_dir):
                show.line(f"  {line}")
        # All start together: the reward workers load while the engines and the ranks do.
        rewards = start_rewards(cfg, run_dir)
        algo = ReportRLConfig().report(cfg, run_dir, rewards.access).build_algo()
        try:
            with connected(rewards, cfg, show) as client:
                show.line(f"rollout actors: {cfg.rollout.num_actors}; to change their number:")
                show.line(f"  python -m actors.scale N --ray-address {ray.get_runtime_context().gcs_address}")
                yield algo, client
        finally:
            algo.stop()
    finally:
        ray.shutdown()


def _join_ray(cfg: Config) -> None:
    """Raises UserError where no cluster answers at `cluster.address`, ProcessError where Ray does not start."""
    for attempt in range(RAY_STARTS):
        try:
            if cfg.cluster.address:
                stay_on_loopback(cfg.cluster.address)
            ray.init(
                address=cfg.cluster.address or "local",  # None would take any Ray that it finds
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": rollout_env(cfg.rollout)},
                **({} if cfg.cluster.address else _local_ray(cfg)),
            )
            return
        except ConnectionError as error:
            raise UserError(f"cluster.address={cfg.cluster.address}: no Ray cluster answers: {error}") from error
        except Exception as error:
            if attempt + 1 == RAY_STARTS:
                raise ProcessError(f"Ray did not start, {RAY_STARTS} times: {error}") from error


def _local_ray(cfg: Config) -> dict[str, object]:
    # Ray counts one CPU a process; the phases of a synchronous run take turns, so processes may outnumber cores.
    cores = cfg.cluster.num_cpus or os.cpu_count() or 1
    return {
        "num_cpus": max(cores, plan.logical_cpus(cfg)),
        "object_store_memory": cfg.cluster.object_store_mib << 20,
        "include_dashboard": False,
    }


def _recorded(algo: ReportRL, checkpoint: Path | None) -> tuple[str, int]:
    """The last step whose numbers stay when this run directory is gone on with: later ones will be done again."""
    if checkpoint is not None:
        state = read_state(checkpoint)
        if state.phase == "rl" or not algo.warm_started:
            return ("rl" if state.phase == "rl" else "warm_start"), state.step
    return ("rl", 0) if algo.warm_started else ("warm_start", 0)
