"""Validation in RL: greedy reports of a few fixed studies, measured, compared with the warm start's, and kept to read.

Contract: a validation changes nothing of the training. Its numbers go to `metrics.jsonl` by the caller; its reports,
with every reward component, stand in `samples/validation_STEP.jsonl` alone. That of step 0 is what later ones are
compared with, paired by study; it is measured anew from its file, so a resumed run compares with the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from configs.schema import Config
from learner.evaluation.bootstrap import Array, Statistic, difference, draw_resamples
from learner.evaluation.measures import Evaluation, Reward, Scorer, evaluate
from learner.evaluation.metrics import tokens
from learner.files import write_whole
from rrg.data import StudySet
from rrg.data.study import Study
from rrg.errors import UserError

Generate = Callable[[Sequence[str]], Sequence[str]]
"""The policy's greedy report of every study id, in order."""

MEASURES: Final = {
    "reward": "reward",
    "abnormal_reward": "reward_abnormal",
    "finding_f1": "finding_f1",
    "shuffle_gap": "shuffle_gap",
    "bleu4": "bleu4",
    "length": "words",
    "repetition": "repetition",
}
"""Names in the rows, and those of an evaluation; beside them `unique`, the share of different reports."""


def validation_studies(cfg: Config, studies: StudySet) -> list[Study]:
    """The first `learner.rl.evaluate_studies` of the validation split; none where RL is not validated.

    Raises UserError where they are too few to be exchanged with each other.
    """
    rl = cfg.learner.rl
    if cfg.stage != "all" or not rl.evaluate_every or not rl.steps:
        return []
    chosen = studies.split("val")[: rl.evaluate_studies]
    if len(chosen) <= cfg.evaluation.permutations:
        raise UserError(
            f"learner.rl.evaluate_every={rl.evaluate_every}: validation needs more than evaluation.permutations="
            f"{cfg.evaluation.permutations} validation studies, there are {len(chosen)}; learner.rl.evaluate_every=0 "
            "does without"
        )
    return list(chosen)


class Validation:
    """Measures the policy as it is at any step."""

    def __init__(
        self, studies: Sequence[Study], folder: Path, generate: Generate, score: Scorer, reward: Reward, cfg: Config
    ) -> None:
        self._studies, self._folder = studies, folder
        self._generate, self._score, self._reward = generate, score, reward
        self._settings, self._seed = cfg.evaluation, cfg.seed
        self._start: Evaluation | None = None

    def measure(self, step: int) -> dict[str, float]:
        """The row of `step`: the measures, and after step 0 `NAME_change` with its 95 % interval `NAME_change_low` and
        `_high`, against step 0. A measure that is undefined is left out.

        Raises RewardError where scores can't be had; the reports are written all the same.
        """
        texts = list(self._generate([study.id for study in self._studies]))
        self._write(step, texts, {})  # should they get no scores: those of step 0 are needed, and can't be had again
        evaluation = self._evaluate(texts)
        self._write(step, texts, evaluation.per_study)
        row = {name: value for name, one in _statistics(evaluation, texts).items() if np.isfinite(value := one.value)}
        return row if step == 0 else row | self._changes(evaluation, texts)

    def _evaluate(self, texts: Sequence[str]) -> Evaluation:
        return evaluate(self._studies, texts, self._score, self._reward, self._settings, self._seed)

    def _changes(self, evaluation: Evaluation, texts: Sequence[str]) -> dict[str, float]:
        begin = [json.loads(line)["hypothesis"] for line in self.file(0).read_text(encoding="utf-8").splitlines()]
        self._start = self._start or self._evaluate(begin)
        before, now = _statistics(self._start, begin), _statistics(evaluation, texts)
        resamples = draw_resamples(len(self._studies), self._settings.bootstrap, self._seed)
        changes: dict[str, float] = {}
        for name, one in now.items():
            value, low, high = difference(one, before[name], resamples)
            if np.isfinite(value):
                changes |= {f"{name}_change": value, f"{name}_change_low": low, f"{name}_change_high": high}
        return changes

    def _write(self, step: int, texts: Sequence[str], measures: Mapping[str, Array]) -> None:
        rows: list[dict[str, Any]] = [
            {"id": study.id, "reference": study.target, "hypothesis": text}
            | {name: float(values[index]) for name, values in measures.items()}
            for index, (study, text) in enumerate(zip(self._studies, texts, strict=True))
        ]
        self._folder.mkdir(exist_ok=True)
        write_whole(self.file(step), "".join(json.dumps(row) + "\n" for row in rows))

    def file(self, step: int) -> Path:
        """Where the reports of `step` stand."""
        return self._folder / f"validation_{step:06d}.jsonl"


def _statistics(evaluation: Evaluation, texts: Sequence[str]) -> dict[str, Statistic]:
    found = {name: evaluation.statistics[theirs] for name, theirs in MEASURES.items()}
    return found | {"unique": unique_statistic(texts)}


def unique_statistic(texts: Sequence[str]) -> Statistic:
    """The share of different reports. A resample holds a report if one of its studies has it, so its share is lower
    than that of the studies themselves; in a paired difference that bias is on both sides."""
    kinds = {kind: index for index, kind in enumerate(dict.fromkeys(tuple(tokens(text)) for text in texts))}
    columns = np.zeros((len(texts), len(kinds)))
    columns[np.arange(len(texts)), [kinds[tuple(tokens(text))] for text in texts]] = 1.0
    return Statistic(columns, lambda sums: np.asarray((sums > 0).sum(axis=-1) / len(texts)))
