"""The whole job, phase by phase: data, processes, warm start, reinforcement learning, evaluation.

Contract: runs in the driver, which holds no model. Everything that it learns of a run stands in the run directory:
`config.yaml`, `metrics.jsonl`, `tensorboard/`, `initial/` and `warm_start/` (policies), `checkpoints/`,
`samples_{sft,rl}.jsonl`, `summary.json`. The roles' own logs are Ray's.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import ray
from rich.console import Console

from actors.env import rollout_env
from configs.schema import Config
from learner import plan
from learner.algorithm import ReportRL, ReportRLConfig
from learner.checkpoints import latest_checkpoint, read_state
from learner.evaluation import controls
from learner.evaluation.measures import Evaluation, evaluate
from learner.progress import Show
from learner.rewards import connected, start_rewards
from learner.summary import build_summary, print_summary, write_summary
from learner.tracking import PeakMemory, Tracker
from reward_server.client import RewardClient
from reward_server.spec import reward_from_components
from rrg.data import StudySet, load_studies
from rrg.data.study import Study
from rrg.model.backbone import FeatureStore

# What the live line of an RL step shows.
SHOWN = {
    "reward_mean": "reward",
    "kl_k3": "KL",
    "entropy": "entropy",
    "length_mean": "tokens",
    "seconds_rollout": "rollout s",
    "seconds_reward_wait": "reward s",
    "seconds_update": "update s",
    "seconds_sync": "sync s",
}


def run_job(cfg: Config, run_dir: Path) -> None:
    """Runs every phase that the run directory does not hold yet, and writes and prints the summary."""
    show = Show(Console())
    show.line(f"run directory: {run_dir}")
    with PeakMemory() as memory:
        with show.phase("data"):
            studies, store = prepare_data(cfg, show)
        with show.phase("set-up"):
            stack = ExitStack()
            algo, client = stack.enter_context(_started(cfg, run_dir, show))
        with stack:
            checkpoint = latest_checkpoint(run_dir / "checkpoints")
            tracker = Tracker(run_dir, keep=_recorded(algo, checkpoint))
            with show.phase("warm start"):
                if not algo.warm_started:
                    warm_start(algo, tracker, show)
                algo.begin_rl(checkpoint)
            if checkpoint is not None:
                show.line(f"resumed from {checkpoint}: {algo.rl_step} RL steps done")
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
        sft, rl, constant, backend, cfg.data.name, show.seconds, memory.peak_gb, cfg.evaluation, cfg.seed
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
    for reason, count in studies.skipped.items():
        show.line(f"left out: {count} studies: {reason}")
    return studies, store


@contextmanager
def _started(cfg: Config, run_dir: Path, show: Show) -> Iterator[tuple[ReportRL, RewardClient]]:
    """Ray, the reward workers, the learner's ranks and the rollout actors; all end with the block."""
    for line in plan.describe(cfg).splitlines():
        show.line(f"  {line}")
    # Ray and RLlib warn of what is chosen here on purpose (no spaces, no learner of theirs).
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address=cfg.cluster.address or "local",  # None would take any Ray that it finds
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": rollout_env(cfg.rollout)},
        **({} if cfg.cluster.address else _local_ray(cfg)),
    )
    try:
        # All start together: the reward workers load while the engines and the ranks do.
        rewards = start_rewards(cfg, run_dir)
        algo = ReportRLConfig().report(cfg, run_dir, rewards.access).build_algo()
        try:
            with connected(rewards, cfg, show) as client:
                yield algo, client
        finally:
            algo.stop()
    finally:
        ray.shutdown()


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
        return "rl", read_state(checkpoint).step
    return ("rl", 0) if algo.warm_started else ("warm_start", 0)


def warm_start(algo: ReportRL, tracker: Tracker, show: Show) -> None:
    """Supervised fine-tuning, shown and recorded step by step."""

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        show.advance("warm-start steps", done, total, metrics)
        tracker.log("warm_start", done, metrics)

    algo.warm_start(progress)


def reinforce(cfg: Config, run_dir: Path, algo: ReportRL, tracker: Tracker, show: Show) -> None:
    """Policy-gradient steps up to `learner.rl.steps`, with a checkpoint every few."""
    rl = cfg.learner.rl
    while algo.rl_step < rl.steps:
        algo.train()
        metrics = algo.step_metrics
        tracker.log("rl", algo.rl_step, metrics)
        # A step of which every sample failed has no reward, KL or entropy to show.
        shown = "  ".join(f"{name} {metrics[key]:.3g}" for key, name in SHOWN.items() if key in metrics)
        show.line(f"  RL step {algo.rl_step}/{rl.steps}  {shown}")
        show.advance("RL steps", algo.rl_step, rl.steps)
        if algo.rl_step % rl.checkpoint_every == 0 or algo.rl_step == rl.steps:
            algo.save_run(run_dir / "checkpoints")


def evaluate_policy(
    cfg: Config, run_dir: Path, name: str, algo: ReportRL, client: RewardClient, studies: StudySet
) -> Evaluation:
    """Greedy reports for the test studies, kept in `samples_NAME.jsonl`, and their measures.

    A resumed run takes the reports from that file, for the weights that wrote them are gone.
    """
    test = studies.split("test")
    path = run_dir / f"samples_{name}.jsonl"
    if path.exists():
        texts = {row["id"]: row["hypothesis"] for row in map(json.loads, path.read_text().splitlines())}
    else:
        texts = {t.study_id: t.text for t in algo.generate([study.id for study in test])}
        rows = [{"id": s.id, "reference": s.target, "hypothesis": texts[s.id]} for s in test]
        partial_path = path.with_suffix(".tmp")
        partial_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial_path.replace(path)
    return _evaluate(cfg, client, test, [texts[study.id] for study in test])


def evaluate_controls(
    cfg: Config, client: RewardClient, studies: StudySet, store: FeatureStore
) -> dict[str, Evaluation]:
    """The measures of reports that need no policy: constants and nearest neighbours (`learner.evaluation.controls`)."""
    train, test = studies.split("train"), studies.split("test")
    reward = partial(reward_from_components, cfg=cfg.reward)
    texts = controls.all_controls(
        train, test, _pooled(store, train), _pooled(store, test), client.score, reward, cfg.evaluation, cfg.seed
    )
    return {name: _evaluate(cfg, client, test, hypotheses) for name, hypotheses in texts.items()}


def _evaluate(cfg: Config, client: RewardClient, test: Sequence[Study], hypotheses: Sequence[str]) -> Evaluation:
    reward = partial(reward_from_components, cfg=cfg.reward)
    return evaluate(test, hypotheses, client.score, reward, cfg.evaluation, cfg.seed)


def _pooled(store: FeatureStore, studies: Sequence[Study]) -> npt.NDArray[np.float32]:
    return np.stack([store.load(study).values.mean(0).numpy() for study in studies])


def scalars(evaluation: Evaluation) -> dict[str, float]:
    """The measures of an evaluation that are one number."""
    return {name: value for name, value in evaluation.metrics.items() if isinstance(value, float)}
