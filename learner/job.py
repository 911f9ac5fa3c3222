"""The whole job, phase by phase: data, processes, warm start, reinforcement learning, evaluation.

Contract: runs in the driver, which holds no model. Everything that it learns of a run stands in the run directory:
`config.yaml`, `metrics.jsonl`, `tensorboard/`, `initial/` and `warm_start/` (policies), `checkpoints/`,
`samples_{sft,rl}.jsonl` and `evidence_{sft,rl}.jsonl` (reports, and what was seen in the regions),
`per_study_{sft,rl}.csv` (their measures), `summary.json`. The roles' own logs are Ray's. `stage` says how far the job
goes.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

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
from learner.evaluation.measures import Evaluation, evaluate, study_table
from learner.evaluation.regions import RegionMeasures, measure_regions
from learner.progress import Show
from learner.rewards import connected, start_rewards
from learner.summary import (
    Summary,
    about_run,
    build_regions_summary,
    build_summary,
    print_summary,
    write_summary,
)
from learner.tracking import PeakMemory, Tracker
from reward_server.client import RewardClient
from reward_server.spec import reward_from_components
from rrg.data import StudySet, load_studies
from rrg.data.study import Study
from rrg.model.backbone import FeatureStore, make_store
from rrg.model.evidence import Evidence, evidence_line, read_evidence_file

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

# Makes the summary of what was measured; told about the run as a whole at its end.
Summarize = Callable[[Mapping[str, Any]], Summary]


def run_job(cfg: Config, run_dir: Path) -> None:
    """Runs every phase that the run directory does not hold yet, and writes and prints the summary."""
    show = Show(Console())
    show.line(f"run directory: {run_dir}")
    with PeakMemory() as memory:
        with show.phase("data"):
            studies = prepare_data(cfg, show)
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
            if cfg.stage == "regions":
                summarize = regions_only(run_dir, algo, studies, show)
            else:
                summarize = reports_and_rl(cfg, run_dir, algo, client, studies, tracker, show)
            tracker.close()
    summary = summarize(about_run(cfg, show.seconds, memory.peak_gb))
    write_summary(run_dir / "summary.json", summary)
    print_summary(summary, show.console)
    show.line(f"all of it: {run_dir}")


def prepare_data(cfg: Config, show: Show) -> StudySet:
    """Reads the studies (rendering X-rays that are not cached yet) and prepares their images."""
    studies = load_studies(cfg.data, progress=show.advance)
    make_store(cfg.data, cfg.model).prepare(list(studies), progress=show.advance)
    for problem in studies.problems[:10]:
        show.line(f"skipped: {problem.file}: {problem.field}: {problem.reason}")
    counts = ", ".join(f"{name} {len(studies.split(name))}" for name in ("train", "val", "test"))
    show.line(f"studies: {counts}; skipped {len(studies.problems)}")
    for reason, count in studies.skipped.items():
        show.line(f"left out: {count} studies: {reason}")
    return studies


def regions_only(run_dir: Path, algo: ReportRL, studies: StudySet, show: Show) -> Summarize:
    """What is left to do after stage=regions: to see how well the regions of the test studies are seen."""
    with show.phase("evaluation of the regions"):
        path, test = run_dir / "evidence_regions.jsonl", studies.split("test")
        if not path.exists():
            written = algo.generate([study.id for study in test], evidence=True)  # no reports: `actors.rollout`
            _write_whole(path, "".join(evidence_line(t.study_id, t.evidence or ()) for t in written))
        measures = measure_regions(read_evidence_file(path), test, studies.split("train"))
    return partial(build_regions_summary, measures)


def reports_and_rl(
    cfg: Config,
    run_dir: Path,
    algo: ReportRL,
    client: RewardClient,
    studies: StudySet,
    tracker: Tracker,
    show: Show,
) -> Summarize:
    """The evaluation of the warm start, RL and its evaluation (unless the run ends before), and the controls."""
    rl, regions = None, {}
    with show.phase("evaluation of the warm start"):
        sft, regions["sft"] = evaluate_policy(cfg, run_dir, "sft", algo, client, studies)
        tracker.log("evaluation", 0, scalars(sft))
    if cfg.stage == "all":
        with show.phase("reinforcement learning"):
            reinforce(cfg, run_dir, algo, tracker, show)
        with show.phase("evaluation of the RL policy"):
            rl, regions["rl"] = evaluate_policy(cfg, run_dir, "rl", algo, client, studies)
            tracker.log("evaluation", algo.rl_step, scalars(rl))
    with show.phase("controls"):
        constant = evaluate_controls(cfg, client, studies, show)
    backend = client.describe().backend
    return lambda about: build_summary(sft, rl, constant, regions, backend, about, cfg.evaluation, cfg.seed)


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
) -> tuple[Evaluation, RegionMeasures | None]:
    """Greedy reports for the test studies and their measures (of each study in `per_study_NAME.csv`), and those of the
    regions."""
    test = studies.split("test")
    texts, evidence = write_reports(run_dir, name, algo, studies)
    evaluation = _evaluate(cfg, client, test, [texts[study.id] for study in test])
    with (run_dir / f"per_study_{name}.csv").open("w", encoding="utf-8", newline="") as file:
        header, rows = study_table(evaluation)
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return evaluation, measure_regions(evidence, test, studies.split("train"))


def write_reports(
    run_dir: Path, name: str, algo: ReportRL, studies: StudySet
) -> tuple[dict[str, str], dict[str, Evidence]]:
    """Greedy reports and evidence of the test studies by id, kept in `samples_NAME.jsonl` and `evidence_NAME.jsonl`.

    A resumed run takes both from the files, for the weights that wrote them are gone.
    """
    test = studies.split("test")
    samples, beside = run_dir / f"samples_{name}.jsonl", run_dir / f"evidence_{name}.jsonl"
    if not samples.exists():
        written = algo.generate([study.id for study in test], evidence=True)
        rows = [{"id": t.study_id, "reference": studies[t.study_id].target, "hypothesis": t.text} for t in written]
        _write_whole(beside, "".join(evidence_line(t.study_id, t.evidence or ()) for t in written))
        _write_whole(samples, "".join(json.dumps(row) + "\n" for row in rows))
    texts = {row["id"]: row["hypothesis"] for row in map(json.loads, samples.read_text().splitlines())}
    return texts, read_evidence_file(beside) if beside.exists() else {}  # older runs have none


def _write_whole(path: Path, text: str) -> None:
    partial_path = path.with_suffix(".tmp")
    partial_path.write_text(text, encoding="utf-8")
    partial_path.replace(path)


def evaluate_controls(cfg: Config, client: RewardClient, studies: StudySet, show: Show) -> dict[str, Evaluation]:
    """The measures of reports that need no policy: constants and nearest neighbours (`learner.evaluation.controls`).

    The nearest image is found by the features of a frozen backbone, which are stored already. A run that trains its
    backbone goes without: they would take a pass over all training and test images and, for RAD-DINO, 2 MB of disk
    an image.
    """
    train, test = studies.split("train"), studies.split("test")
    reward = partial(reward_from_components, cfg=cfg.reward)
    texts = {
        "most_frequent": controls.most_frequent(train, test),
        "best_constant": controls.best_constant(train, test, client.score, reward, cfg.evaluation, cfg.seed),
    }
    if cfg.model.backbone.train == "frozen":
        store = FeatureStore(cfg.data, cfg.model)
        texts["nearest_image"] = controls.nearest_image(train, _pooled(store, train), _pooled(store, test))
    else:
        show.line(
            f"control nearest_image: left out with model.backbone.train={cfg.model.backbone.train}, for it takes the "
            "features of a frozen backbone"
        )
    texts["nearest_findings"] = controls.nearest_findings(train, test)
    return {name: _evaluate(cfg, client, test, hypotheses) for name, hypotheses in texts.items()}


def _evaluate(cfg: Config, client: RewardClient, test: Sequence[Study], hypotheses: Sequence[str]) -> Evaluation:
    reward = partial(reward_from_components, cfg=cfg.reward)
    return evaluate(test, hypotheses, client.score, reward, cfg.evaluation, cfg.seed)


def _pooled(store: FeatureStore, studies: Sequence[Study]) -> npt.NDArray[np.float32]:
    return np.stack([store.load(study).values.mean(0).numpy() for study in studies])


def scalars(evaluation: Evaluation) -> dict[str, float]:
    """The measures of an evaluation that are one number."""
    return {name: value for name, value in evaluation.metrics.items() if isinstance(value, float)}
