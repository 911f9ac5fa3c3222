"""What each part of the model is worth: runs without it against the full one, as one table and one sentence a part.

Contract: pure functions of finished run directories of learner.main (`summary.json`, `samples_sft.jsonl`,
`per_study_sft.csv`) on the same test studies. Differences are paired by study, over the same bootstrap resamples; of
several seeds the results of a study are pooled. An interval is over studies: how much a run depends on its seed, only
several seeds can show.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from learner.evaluation import metrics
from learner.evaluation.bootstrap import Statistic, difference, draw_resamples, interval
from learner.evaluation.finished import statistics_of
from learner.evaluation.numbers import fixed, spread
from learner.evaluation.tables import markdown_table
from rrg.errors import UserError

FULL: Final = "full"
JUDGED: Final = {"reward": "reward", "finding_f1": "finding F1", "shuffle_gap": "shuffle gap"}
"""A part is judged by these: each is higher for a better model."""
LEAST_STUDIES: Final = 50
"""With fewer studies a bootstrap interval is too narrow to judge a part by."""

_SHOWN: Final = {
    "reward": "reward",
    "finding_precision": "finding P",
    "finding_recall": "finding R",
    "finding_f1": "finding F1",
    "shuffle_gap": "shuffle gap",
    "unique": "unique reports",
    "bleu4": "BLEU-4",
    "iou": "mean IoU",
    "auroc": "mean AUROC",
}
Report = dict[str, Any]


@dataclass(frozen=True)
class ArmResult:
    """One arm, its seeds pooled: what is resampled, and the plain numbers (None where the arm has none)."""

    study_ids: tuple[str, ...]
    statistics: Mapping[str, Statistic]
    plain: Mapping[str, float | None]
    seeds: int


def read_arm(run_dirs: Sequence[Path]) -> ArmResult:
    """The result of one arm from its runs, one a seed. Raises UserError where they are not of the same studies."""
    runs = [_read_run(run_dir) for run_dir in run_dirs]
    first = runs[0]
    for run, run_dir in zip(runs, run_dirs, strict=True):
        if run.study_ids != first.study_ids:
            raise UserError(f"{run_dir} has other test studies than {run_dirs[0]}: ablations need the same data")
    pooled = {
        name: Statistic(np.sum([run.statistics[name].columns for run in runs], axis=0), one.of_sums)
        for name, one in first.statistics.items()
    }
    plain = {name: _mean([run.plain[name] for run in runs]) for name in first.plain}
    return ArmResult(first.study_ids, pooled, plain, len(runs))


def report(arms: Mapping[str, ArmResult], failed: Sequence[str], bootstrap: int, seed: int) -> Report:
    """The content of table.json.

    {"studies", "seeds", "bootstrap", "failed": [runs], "arms": {arm: {measure: [value, low, high], or a number or None
    where nothing is resampled}}, "minus_full": {arm: {measure: [difference, low, high]}}, "sentences": {arm: text}}.
    Raises UserError where arms are not of the same studies or numbers of seeds.
    """
    first_name, first = next(iter(arms.items()))
    for name, arm in arms.items():
        if (arm.study_ids, arm.seeds) != (first.study_ids, first.seeds):
            raise UserError(f"the arms {first_name} and {name} are not of the same test studies and seeds")
    resamples = draw_resamples(len(first.study_ids), bootstrap, seed)
    full = arms.get(FULL)
    gains = {
        name: {key: difference(one, full.statistics[key], resamples) for key, one in arm.statistics.items()}
        for name, arm in arms.items()
        if full is not None and name != FULL
    }
    return {
        "studies": len(first.study_ids),
        "seeds": first.seeds,
        "bootstrap": bootstrap,
        "failed": list(failed),
        "arms": {
            name: {key: list(interval(one, resamples)) for key, one in arm.statistics.items()} | dict(arm.plain)
            for name, arm in arms.items()
        },
        "minus_full": {name: {key: list(gain) for key, gain in by.items()} for name, by in gains.items()},
        "sentences": {name: _sentence(name, by, _unjudged(arms[FULL], arms[name])) for name, by in gains.items()},
    }


def cells(report: Report) -> tuple[list[str], list[list[str]]]:
    """Column titles, and two rows an arm: its values, and below its differences to the full model."""
    rows = []
    for name, arm in report["arms"].items():
        rows.append([name, *(_cell(arm[key], 0 if key == "unique" else 3, key in JUDGED) for key in _SHOWN)])
        gains = report["minus_full"].get(name)
        if gains is not None:
            rows.append(["  - full", *(spread(gains[key], sign="+") if key in JUDGED else "" for key in _SHOWN)])
    return ["without", *_SHOWN.values()], rows


def notes(report: Report) -> list[str]:
    """The sentences, and what the intervals do not say."""
    seeds = "one seed" if report["seeds"] == 1 else f"{report['seeds']} seeds, pooled by study"
    about = (
        f"{report['studies']} test studies, {seeds}; 95 % paired bootstrap intervals over studies: they do not show "
        "how much a training run depends on its seed, and are not corrected for the number of comparisons"
    )
    failed = [f"failed: {', '.join(report['failed'])} (left out)"] if report["failed"] else []
    return [*report["sentences"].values(), about, *failed]


def markdown(report: Report) -> str:
    """The table and the notes for a README."""
    return "\n".join([markdown_table(*cells(report)), *(f"- {note}" for note in notes(report))]) + "\n"


def _read_run(run_dir: Path) -> ArmResult:
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    samples = [json.loads(line) for line in (run_dir / "samples_sft.jsonl").read_text(encoding="utf-8").splitlines()]
    with (run_dir / "per_study_sft.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    per_study = {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name != "id"}
    pairs = [(sample["reference"], sample["hypothesis"]) for sample in samples]
    known = statistics_of(per_study, pairs)
    statistics = {name: known[name] for name in _SHOWN if name in known}
    regions = summary["regions"]["sft"]
    plain = {name: None if regions is None else regions["groups"]["all"][name] for name in ("iou", "auroc")}
    plain["unique"] = float(metrics.unique([hypothesis for _, hypothesis in pairs]))
    return ArmResult(tuple(row["id"] for row in rows), statistics, plain, 1)


def _unjudged(full: ArmResult, arm: ArmResult) -> str | None:
    """Why two arms are no grounds to judge the part."""
    if len(arm.study_ids) < LEAST_STUDIES:
        return f"{len(arm.study_ids)} test studies are too few, {LEAST_STUDIES} are needed"
    if full.plain["unique"] == arm.plain["unique"] == 1:
        return "both write one report for all studies"
    return None


def _sentence(name: str, gains: Mapping[str, Sequence[float]], unjudged: str | None) -> str:
    """Whether a part helped, by the differences without it."""
    falls = [key for key in JUDGED if gains[key][2] < 0]
    rises = [key for key in JUDGED if gains[key][1] > 0]
    told = ", ".join(f"{title} {spread(gains[key], sign='+')}" for key, title in JUDGED.items())
    if unjudged is not None:
        verdict = f"no verdict: {unjudged}"
    elif falls and not rises:
        verdict = f"it helped ({_titles(falls)} lower without it)"
    elif rises and not falls:
        verdict = f"it hurt ({_titles(rises)} higher without it)"
    elif falls:
        verdict = f"it helped and hurt ({_titles(falls)} lower, {_titles(rises)} higher without it)"
    else:
        verdict = "no effect of it was shown"
    return f"{name}: {verdict}. Without it, against the full model: {told}."


def _titles(names: Sequence[str]) -> str:
    return " and ".join(JUDGED[name] for name in names)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _cell(value: float | Sequence[float] | None, digits: int, with_interval: bool) -> str:
    if value is None:
        return "-"
    if isinstance(value, float | int):
        return fixed(value, digits)
    return spread(value) if with_interval else fixed(value[0], digits)
