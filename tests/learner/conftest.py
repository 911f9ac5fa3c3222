"""A small finished run directory, written by the same functions that write a real one, over a data set of its own."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image as PILImage

from configs.load import compose_config
from configs.schema import Config
from learner.evaluation.bootstrap import Array
from learner.evaluation.measures import evaluate, study_table
from learner.summary import about_run, build_summary, write_summary
from learner.tracking import Tracker
from reward_server.spec import reward_from_components
from rrg.data import load_studies
from rrg.data.study import Study
from rrg.model.evidence import RegionEvidence, evidence_line
from tests.evaluation.conftest import NORMAL, make_studies, token_f1_score

STUDIES = 24
SETTINGS = ["+reward.component_weights={graph_f1: 1.0}", "reward.repetition_weight=0", "reward.length_weight=0"]
MakeRun = Callable[..., Path]


def score(pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
    """Overlaps of words by the names of two components of the backend `embedded`."""
    return [{"graph_f1": one["overlap"], "bleu2": one["bleu2"]} for one in token_f1_score(pairs)]


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of studies with grey squares for X-rays, every second study abnormal."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for study in [*make_studies(2, "train"), *make_studies(2, "val"), *make_studies(STUDIES, "test")]:
        shade = len(rows) * 7 % 255
        PILImage.fromarray(np.full((48, 48), shade, np.uint8)).save(folder / f"{study.id}.png")
        rows.append({"id": study.id, "split": study.split, "image_path": [f"{study.id}.png"], "view": ["frontal"]})
        rows[-1] |= {"findings": study.report.findings}
    (folder / "studies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def run_config(data_set: Path) -> Config:
    settings = [*SETTINGS, "reward.positive_f1_weight=0", "evaluation.bootstrap=200", "name=small"]
    return compose_config(["data=jsonl", f"data.root={data_set}", *settings])


@pytest.fixture(scope="session")
def run_studies(run_config: Config) -> list[Study]:
    return list(load_studies(run_config.data).split("test"))


@pytest.fixture
def make_run(tmp_path: Path, run_config: Config, run_studies: list[Study]) -> MakeRun:
    """Writes the run NAME: its warm start wrote NORMAL for every study, its RL policy `hypotheses`."""

    def write(name: str, hypotheses: Sequence[str], *, lr: float = 1e-4) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(run_config)))
        stored = OmegaConf.load(folder / "config.yaml")
        stored.learner.rl.lr = lr
        OmegaConf.save(stored, folder / "config.yaml")
        reward = partial(reward_from_components, cfg=run_config.reward)
        found = {}
        for policy, texts in {"sft": [NORMAL] * len(run_studies), "rl": hypotheses}.items():
            found[policy] = evaluate(run_studies, texts, score, reward, run_config.evaluation, seed=0)
            pairs = zip(run_studies, texts, strict=True)
            rows = [{"id": study.id, "reference": study.target, "hypothesis": text} for study, text in pairs]
            (folder / f"samples_{policy}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            seen = "".join(evidence_line(study.id, (HEART, QUIET)) for study in run_studies)
            (folder / f"evidence_{policy}.jsonl").write_text(seen)
            header, table = study_table(found[policy])
            with (folder / f"per_study_{policy}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([header, *table])
        _record(folder)
        about = about_run(run_config, {"warm start": 12.0, "reinforcement learning": 75.0}, 1.5)
        summary = build_summary(
            found["sft"], found["rl"], {"most_frequent": found["sft"]}, {}, "embedded", about, run_config.evaluation, 0
        )
        write_summary(folder / "summary.json", summary)
        return folder

    return write


HEART = RegionEvidence("cardiac silhouette", 0.9, (0.4, 0.4, 0.75, 0.8), {"cardiomegaly": 0.9}, "the heart is enlarged")
QUIET = RegionEvidence("spine", 0.1, (0.4, 0.1, 0.6, 0.9), {}, None)


def _record(folder: Path) -> None:
    tracker = Tracker(folder, keep=("warm_start", 0))
    for step in range(1, 6):
        tracker.log("warm_start", step, {"loss": 5.0 / step, "findings_loss": 1.0 / step, "grad_norm": 1.0})
    for step in range(1, 5):
        row = {
            "reward_mean": 0.1 * step,
            "component_graph_f1": 0.1 * step,
            "kl_k3": 0.01 * step,
            "entropy": 2.0 - step / 9,
        }
        tracker.log("rl", step, {**row, "length_mean": 20.0, "seconds_step": 3.0, "idle_learner": 0.5})
    tracker.close()


@pytest.fixture
def good(run_studies: list[Study]) -> list[str]:
    """Two of three reports are right; the third states a finding that is not there."""
    return [study.target if i % 3 else "there is a pneumothorax ." for i, study in enumerate(run_studies)]


@pytest.fixture
def rewards(run_studies: list[Study], good: list[str]) -> Array:
    pairs = [(study.target, text) for study, text in zip(run_studies, good, strict=True)]
    return np.array([one["graph_f1"] for one in score(pairs)])
