"""The reports of many runs, judged alike: the same test studies, the same reward, the same permutations and resamples.

Contract: reads `samples_*.jsonl` and `summary.json` of finished runs, and scores with the `embedded` backend of this
process under the default reward, whatever reward a run was trained with. Seeds of an arm are pooled by study;
differences to the warm start, to more SFT and to RL are paired by study *and* seed. Intervals are over studies; what a
difference owes to the seed, the single seeds' values beside it show. Writes `table.json` and `table.md`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from configs.schema import DataConfig, EvalConfig, RewardConfig
from learner.evaluation.bootstrap import Statistic, difference, draw_resamples, interval
from learner.evaluation.measures import Evaluation, Pair, evaluate
from learner.evaluation.tables import filled_table, markdown_table
from reward_server.spec import reward_from_components
from rrg.data import load_studies
from rrg.data.studyset import StudySet
from rrg.errors import UserError

SHOWN: Final = {
    "reward": "reward",
    "reward_abnormal": "reward, abnormal",
    "embedded": "embedded (lower is better)",
    "graph_f1": "graph F1",
    "bertscore": "BERTScore",
    "label_similarity": "label similarity",
    "finding_precision": "finding precision",
    "finding_recall": "finding recall",
    "finding_f1": "finding F1",
    "shuffle_gap": "shuffle gap",
    "bleu4": "BLEU-4",
    "rougeL": "ROUGE-L",
    "words": "words",
    "repetition": "repetition",
}
BASES: Final = ("warm", "more_sft", "rl")
"""The arms that the others are compared with."""

SECONDS: Final = {"rl": "reinforcement learning", "sft": "warm start"}
_SEED: Final = 0

Score = Callable[[list[Pair]], list[dict[str, float]]]
Judged = dict[str, dict[int, Evaluation]]
"""By arm and seed."""


@dataclass(frozen=True)
class Facts:
    """What a run says of itself: different test reports, and seconds of the training that the arm is named for."""

    unique: float
    seconds: float


def write(out: Path, runs: Sequence[tuple[str, int, Path, str]], console: Console) -> dict[str, Any]:
    """Judges `runs` (arm, seed, folder, policy), prints and writes the table; returns what `table.json` holds."""
    studies = load_studies(DataConfig(name="rendered_openi"))
    score = kept_scores(out / "scores.jsonl")
    judged: Judged = {}
    facts: dict[str, list[Facts]] = {}
    for arm, seed, folder, policy in runs:
        found = judge(folder, policy, studies, score)
        judged.setdefault(arm, {})[seed] = found
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        unique = found.metrics["unique"]
        assert isinstance(unique, float)
        facts.setdefault(arm, []).append(Facts(unique, float(summary["seconds"].get(SECONDS[policy], 0.0))))
    made = report(judged, facts, EvalConfig().bootstrap)
    (out / "table.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    header, rows = cells(made)
    (out / "table.md").write_text(markdown_table(header, rows), encoding="utf-8")
    console.print(filled_table(header, rows))
    return made


def judge(folder: Path, policy: str, studies: StudySet, score: Score) -> Evaluation:
    """The measures of a run's test reports, under the default reward. Raises UserError where they are not there."""
    path = folder / f"samples_{policy}.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist: the run has written no reports")
    texts = {row["id"]: row["hypothesis"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    test = [study for study in studies.split("test") if study.id in texts]
    reward = partial(reward_from_components, cfg=RewardConfig())
    return evaluate(test, [texts[study.id] for study in test], score, reward, EvalConfig(), _SEED)


def kept_scores(path: Path) -> Score:
    """A scorer of this process that keeps every score in a file (JSON lines), so that a second table costs nothing."""
    from reward_server.backends import create_scorer
    from reward_server.scorer import ScorerOptions
    from reward_server.threads import set_threads

    set_threads(2)
    scorer = create_scorer(ScorerOptions("embedded"))
    known: dict[Pair, dict[str, float]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            reference, hypothesis, components = json.loads(line)
            known[reference, hypothesis] = components

    def score(pairs: list[Pair]) -> list[dict[str, float]]:
        missing = [pair for pair in pairs if pair not in known]
        with path.open("a", encoding="utf-8") as file:
            for pair, components in zip(missing, scorer.score(missing), strict=True):
                known[pair] = dict(components)
                file.write(json.dumps([*pair, known[pair]]) + "\n")
        return [known[pair] for pair in pairs]

    return score


def report(judged: Judged, facts: Mapping[str, Sequence[Facts]], bootstrap: int) -> dict[str, Any]:
    """{"studies", "arms": {arm: {"seeds", "unique", "seconds", measure: [value, low, high]}}, "minus": {base: {arm:
    {measure: {"pooled": [difference, low, high], "seeds": {seed: difference}}}}}}."""
    some = next(iter(next(iter(judged.values())).values()))
    resamples = draw_resamples(len(some.study_ids), bootstrap, _SEED)
    arms: dict[str, Any] = {}
    for arm, by_seed in judged.items():
        measured = {name: list(interval(pooled(by_seed, name, list(by_seed)), resamples)) for name in SHOWN}
        told = facts[arm]
        arms[arm] = {
            "seeds": sorted(by_seed),
            "unique": float(np.mean([fact.unique for fact in told])),
            "seconds": [fact.seconds for fact in told],
            **measured,
        }
    minus: dict[str, Any] = {}
    for base in BASES:
        for arm, by_seed in judged.items():
            seeds = sorted(by_seed.keys() & judged.get(base, {}).keys())
            if arm != base and seeds:
                minus.setdefault(base, {})[arm] = {
                    name: _gain(by_seed, judged[base], name, seeds, resamples) for name in SHOWN
                }
    return {"studies": len(some.study_ids), "bootstrap": bootstrap, "arms": arms, "minus": minus}


def pooled(by_seed: Mapping[int, Evaluation], name: str, seeds: Sequence[int]) -> Statistic:
    """One statistic of several seeds: a study's counts are added up, so that means are means over seeds too."""
    found = [by_seed[seed].statistics[name] for seed in seeds]
    return Statistic(np.sum([one.columns for one in found], axis=0), found[0].of_sums)


def cells(made: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Measures down, arms across; the differences below, with the single seeds' values."""
    arms = made["arms"]
    header = ["", *(f"{arm} ({len(entry['seeds'])})" for arm, entry in arms.items())]
    rows = [[title, *(f"{entry[name][0]:.3f}" for entry in arms.values())] for name, title in SHOWN.items()]
    rows.append([f"unique reports of {made['studies']}", *(f"{entry['unique']:.0f}" for entry in arms.values())])
    rows.append(["seconds", *("/".join(f"{s:.0f}" for s in entry["seconds"]) for entry in arms.values())])
    for base, gains in made["minus"].items():
        for name, title in SHOWN.items():
            rows.append([f"{title} - {base}", *(_gain_cell(gains.get(arm), name) for arm in arms)])
    return header, rows


def _gain(
    first: Mapping[int, Evaluation], second: Mapping[int, Evaluation], name: str, seeds: Sequence[int], resamples: Any
) -> dict[str, Any]:
    single = {seed: first[seed].statistics[name].value - second[seed].statistics[name].value for seed in seeds}
    whole = difference(pooled(first, name, seeds), pooled(second, name, seeds), resamples)
    return {"pooled": list(whole), "seeds": single}


def _gain_cell(gains: Mapping[str, Any] | None, name: str) -> str:
    if gains is None:
        return ""
    value, low, high = gains[name]["pooled"]
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
