"""The evaluation of a run's policies, and of the controls that need none, on the test studies.

Contract: reports are written once and kept (`samples_NAME.jsonl`, `evidence_NAME.jsonl`): a resumed run measures those
again, for the weights that wrote them are gone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from learner.evaluation import controls
from learner.evaluation.measures import Evaluation, evaluate, study_table
from learner.evaluation.regions import RegionMeasures, measure_regions
from learner.files import write_whole
from learner.run import Run
from reward_server.spec import reward_from_components
from rrg.data.study import Study
from rrg.model.backbone import FeatureStore
from rrg.model.evidence import Evidence, evidence_line, read_evidence_file


def evaluate_policy(run: Run, name: str) -> tuple[Evaluation, RegionMeasures | None]:
    """Greedy reports for the test studies and their measures (of each study in `per_study_NAME.csv`), and those of the
    regions."""
    test = run.studies.split("test")
    texts, evidence = _write_reports(run, name)
    evaluation = _evaluate(run, test, [texts[study.id] for study in test])
    with (run.folder / f"per_study_{name}.csv").open("w", encoding="utf-8", newline="") as file:
        header, rows = study_table(evaluation)
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return evaluation, measure_regions(evidence, test, run.studies.split("train"))


def evaluate_regions(run: Run) -> RegionMeasures | None:
    """How well the regions of the test studies are seen, by a policy that cannot write reports yet."""
    path, test = run.folder / "evidence_regions.jsonl", run.studies.split("test")
    if not path.exists():
        written = run.algo.generate([study.id for study in test], evidence=True)  # no reports: `actors.rollout`
        write_whole(path, "".join(evidence_line(t.study_id, t.evidence or ()) for t in written))
    return measure_regions(read_evidence_file(path), test, run.studies.split("train"))


def evaluate_controls(run: Run) -> dict[str, Evaluation]:
    """The measures of reports that need no policy: constants and nearest neighbours (`learner.evaluation.controls`).

    The nearest image is found by the features of a frozen backbone, which are stored already. A run that trains its
    backbone goes without: they would take a pass over all training and test images and, for RAD-DINO, 2 MB of disk
    an image.
    """
    cfg, train, test = run.cfg, run.studies.split("train"), run.studies.split("test")
    reward = partial(reward_from_components, cfg=cfg.reward)
    texts = {
        "most_frequent": controls.most_frequent(train, test),
        "best_constant": controls.best_constant(train, test, run.client.score, reward, cfg.evaluation, cfg.seed),
    }
    if cfg.model.backbone.train == "frozen":
        store = FeatureStore(cfg.data, cfg.model)
        texts["nearest_image"] = controls.nearest_image(train, _pooled(store, train), _pooled(store, test))
    else:
        run.show.line(
            f"control nearest_image: left out with model.backbone.train={cfg.model.backbone.train}, for it takes the "
            "features of a frozen backbone"
        )
    texts["nearest_findings"] = controls.nearest_findings(train, test)
    return {name: _evaluate(run, test, hypotheses) for name, hypotheses in texts.items()}


def scalars(evaluation: Evaluation) -> dict[str, float]:
    """The measures of an evaluation that are one number."""
    return {name: value for name, value in evaluation.metrics.items() if isinstance(value, float)}


def _write_reports(run: Run, name: str) -> tuple[dict[str, str], dict[str, Evidence]]:
    """Greedy reports and evidence of the test studies by id, from the files where they are there."""
    samples, beside = run.folder / f"samples_{name}.jsonl", run.folder / f"evidence_{name}.jsonl"
    if not samples.exists():
        written = run.algo.generate([study.id for study in run.studies.split("test")], evidence=True)
        rows = [{"id": t.study_id, "reference": run.studies[t.study_id].target, "hypothesis": t.text} for t in written]
        write_whole(beside, "".join(evidence_line(t.study_id, t.evidence or ()) for t in written))
        write_whole(samples, "".join(json.dumps(row) + "\n" for row in rows))
    texts = {row["id"]: row["hypothesis"] for row in map(json.loads, samples.read_text().splitlines())}
    return texts, read_evidence_file(beside)


def _evaluate(run: Run, test: Sequence[Study], hypotheses: Sequence[str]) -> Evaluation:
    reward = partial(reward_from_components, cfg=run.cfg.reward)
    return evaluate(test, hypotheses, run.client.score, reward, run.cfg.evaluation, run.cfg.seed)


def _pooled(store: FeatureStore, studies: Sequence[Study]) -> npt.NDArray[np.float32]:
    return np.stack([store.load(study).values.mean(0).numpy() for study in studies])
