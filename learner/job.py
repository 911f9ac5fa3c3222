"""The whole job, phase by phase: data, processes, warm start, reinforcement learning, evaluation.

Contract: runs in the driver, which holds no model. Everything that it learns of a run stands in the run directory:
`config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `warm_start/`, `policy/`, `samples_{sft,rl}.jsonl`,
`summary.json`, and the log of every role under `logs/`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ray
from rich.console import Console

from configs.schema import Config
from learner import controls, plan
from learner.algorithm import ReportRL, ReportRLConfig
from learner.checkpoints import latest_checkpoint
from learner.evaluate import Evaluation, evaluate
from learner.progress import Show
from learner.summary import build_summary, print_summary, write_summary
from learner.tracking import PeakMemory, Tracker
from reward_server.client import RewardClient
from reward_server.spec import reward_from_components
from reward_server.worker import reward_workers
from rrg.data import StudySet, load_studies
from rrg.data.study import Study
from rrg.model.backbone import FeatureStore


def run_job(cfg: Config, run_dir: Path) -> None:
    """Runs every phase that the run directory does not hold yet, and writes and prints the summary."""
    show = Show(Console())
    show.line(f"run directory: {run_dir}")
    with PeakMemory() as memory:
        with show.phase("data"):
            studies, store = prepare_data(cfg, show)
        with show.phase("set-up"):
            stack = _start(cfg, run_dir, show)
        with stack as (algo, client):
            resume(cfg, run_dir, algo, show)
            tracker = Tracker(run_dir, resume_at=algo.position if cfg.resume else None)
            with show.phase("warm start"):
                warm_start(algo, tracker, show)
            with show.phase("evaluation of the warm start"):
                sft = evaluate_policy(cfg, run_dir, "sft", algo, client, studies)
                tracker.log("evaluation", 0, scalars(sft))
            with show.phase("reinforcement learning"):
                reinforce(cfg, run_dir, algo, tracker, show)
            with show.phase("evaluation of the RL policy"):
                rl = evaluate_policy(cfg, run_dir, "rl", algo, client, studies)
                tracker.log("evaluation", algo.rl_step, scalars(rl))
            with show.phase("controls"):
                constant = evaluate_controls(cfg, client, studies, store)
            tracker.close()
            backend = client.describe().backend
    summary = build_summary(
        sft, rl, constant, backend, _images(cfg), show.seconds, memory.peak_gb, cfg.evaluation, cfg.seed
    )
    write_summary(run_dir / "summary.json", summary)
    print_summary(summary, show.console)
    show.line(f"all of it: {run_dir}")


def prepare_data(cfg: Config, show: Show) -> tuple[StudySet, FeatureStore]:
    """Reads the studies (rendering X-rays that are not cached yet) and the backbone's features of their images."""
    studies = load_studies(cfg.data, progress=show.advance)
    store = FeatureStore(cfg.data, cfg.model)
    store.prepare(list(studies.studies.values()), progress=show.advance)
    for problem in studies.problems[:10]:
        show.line(f"skipped: {problem.file}: {problem.field}: {problem.reason}")
    counts = ", ".join(f"{name} {len(studies.split(name))}" for name in ("train", "val", "test"))
    show.line(f"studies: {counts}; skipped {len(studies.problems)}")
    return studies, store


@contextmanager
def _started(cfg: Config, run_dir: Path, show: Show) -> Iterator[tuple[ReportRL, RewardClient]]:
    """Ray, the reward workers, the learner's ranks and the rollout actors; all end with the block."""
    show.line(plan.describe(cfg))
    ray.init(
        address=cfg.cluster.address,
        log_to_driver=False,
        **({} if cfg.cluster.address else _local_ray(cfg)),
    )
    try:
        with reward_workers(cfg.reward, timeout_s=cfg.cluster.start_timeout_s) as addresses:
            algo = ReportRLConfig().report(cfg, run_dir, reward_addresses=addresses).build_algo()
            client = RewardClient(addresses, timeout_s=cfg.reward.timeout_s)
            try:
                yield algo, client
            finally:
                client.close()
                algo.stop()
    finally:
        ray.shutdown()
