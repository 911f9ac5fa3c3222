"""Validations measure, compare with the warm start and are kept; rewards relative to the best constant report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from configs.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    EvalConfig,
    LearnerConfig,
    ModelConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    StopConfig,
)
from learner.evaluation.bootstrap import draw_resamples
from learner.evaluation.controls import best_constant
from learner.monitor import judge_validations
from learner.offsets import reward_offsets
from learner.tracking import Row
from learner.validation import Validation, unique_statistic, validation_studies
from reward_server.errors import RewardError
from rrg.data.study import Study
from rrg.data.studyset import StudySet
from rrg.errors import UserError
from tests.evaluation.conftest import NORMAL, make_studies, overlap_reward, token_f1_score

OVERLAP = RewardConfig(
    component_weights={"overlap": 1.0}, repetition_weight=0.0, length_weight=0.0, positive_f1_weight=0.0
)


@pytest.fixture
def cfg() -> Config:
    return Config(
        data=DataConfig("test"),
        model=ModelConfig(),
        rollout=RolloutConfig(),
        reward=OVERLAP,
        learner=LearnerConfig(rl=RLConfig(evaluate_studies=40)),
        cluster=ClusterConfig(),
        evaluation=EvalConfig(permutations=3, bootstrap=300, constant_studies=40, constant_candidates=6),
    )


@pytest.fixture
def studies() -> list[Study]:
    return make_studies(40, split="val")


def copies(studies: Sequence[Study]) -> list[str]:
    """Reports that depend on the study as much as can be."""
    return [study.target for study in studies]


class Policy:
    """Writes what it is told to, in the order that it is asked in."""

    def __init__(self, studies: Sequence[Study], texts: Sequence[str]) -> None:
        self._ids = [study.id for study in studies]
        self.texts = list(texts)

    def __call__(self, ids: Sequence[str]) -> list[str]:
        assert list(ids) == self._ids
        return self.texts


def validation(
    studies: Sequence[Study], policy: Callable[[Sequence[str]], list[str]], cfg: Config, at: Path
) -> Validation:
    return Validation(studies, at / "samples", policy, token_f1_score, overlap_reward, cfg)


def numbered(rows: Sequence[Row]) -> list[Row]:
    return [{"step": 5 * index} | dict(row) for index, row in enumerate(rows)]


def test_a_policy_that_falls_to_one_template_is_seen_to_decline(
    studies: list[Study], cfg: Config, tmp_path: Path
) -> None:
    policy = Policy(studies, copies(studies))
    measured = validation(studies, policy, cfg, tmp_path)
    rows = [measured.measure(0)]
    assert rows[0]["finding_f1"] == rows[0]["reward"] == 1
    assert rows[0]["shuffle_gap"] > 0
    policy.texts = [NORMAL] * len(studies)
    rows += [measured.measure(step) for step in (5, 10)]
    assert rows[2]["finding_f1"] == rows[2]["shuffle_gap"] == 0
    assert rows[2]["unique"] == 1 / len(studies)
    for name in ("finding_f1", "abnormal_reward", "unique", "shuffle_gap"):
        low, change, high = (rows[2][f"{name}_change{end}"] for end in ("_low", "", "_high"))
        assert change == pytest.approx(rows[2][name] - rows[0][name])
        assert low <= change <= high < 0
        assert judge_validations(numbered(rows), StopConfig(measures=[name])) is not None


def test_a_policy_that_has_not_changed_has_not_declined(studies: list[Study], cfg: Config, tmp_path: Path) -> None:
    measured = validation(studies, Policy(studies, copies(studies)), cfg, tmp_path)
    rows = [measured.measure(step) for step in (0, 5, 10)]
    assert rows[1] == rows[2]
    assert all(rows[1][name] == 0 for name in rows[1] if "_change" in name)
    assert judge_validations(numbered(rows), StopConfig()) is None


def test_a_resumed_run_compares_with_the_warm_start_of_its_files(
    studies: list[Study], cfg: Config, tmp_path: Path
) -> None:
    policy = Policy(studies, copies(studies))
    unbroken = validation(studies, policy, cfg, tmp_path)
    unbroken.measure(0)
    policy.texts = [NORMAL] * len(studies)
    resumed = validation(studies, policy, cfg, tmp_path)
    assert resumed.measure(5) == unbroken.measure(5)


def test_the_reports_of_a_validation_are_kept_with_every_component(
    studies: list[Study], cfg: Config, tmp_path: Path
) -> None:
    validation(studies, Policy(studies, copies(studies)), cfg, tmp_path).measure(0)
    lines = (tmp_path / "samples" / "validation_000000.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [study.id for study in studies]
    assert all(row["hypothesis"] == row["reference"] for row in rows)
    assert {"reward", "overlap", "rougeL", "repetition", "words"} <= rows[0].keys()


def test_reports_of_the_warm_start_that_got_no_scores_are_compared_with_later(
    studies: list[Study], cfg: Config, tmp_path: Path
) -> None:
    policy, there = Policy(studies, copies(studies)), [False]

    def score(pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
        if not there[0]:
            raise RewardError("the servers are away")
        return token_f1_score(pairs)

    measured = Validation(studies, tmp_path / "samples", policy, score, overlap_reward, cfg)
    with pytest.raises(RewardError):
        measured.measure(0)
    there[0], policy.texts = True, [NORMAL] * len(studies)
    row = measured.measure(5)
    assert row["finding_f1_change"] == row["finding_f1"] - 1
    assert row["reward_change"] == pytest.approx(row["reward"] - 1)


def test_the_share_of_different_reports_is_that_of_the_studies_drawn() -> None:
    texts = ["a", "b", "B", "c", "c"]
    statistic = unique_statistic(texts)
    assert statistic.value == 3 / 5
    resamples = draw_resamples(5, 20, seed=0)
    for drawn, share in zip(resamples, statistic.draws(resamples), strict=True):
        assert share == len({text.lower() for text, times in zip(texts, drawn, strict=True) if times}) / 5


def test_the_first_studies_of_the_validation_split_are_taken_and_too_few_are_refused_before_the_run(
    studies: list[Study], cfg: Config
) -> None:
    cfg.learner.rl.evaluate_studies = 10
    assert validation_studies(cfg, StudySet(studies, [], {})) == studies[:10]
    few = StudySet(studies[:3], [], {})
    with pytest.raises(UserError, match=r"learner\.rl\.evaluate_every=0"):
        validation_studies(cfg, few)
    cfg.learner.rl.evaluate_every = 0
    assert validation_studies(cfg, few) == []


def test_every_training_study_is_offset_by_what_the_best_constant_report_gets_for_it(
    cfg: Config, tmp_path: Path
) -> None:
    train = make_studies(50, split="train")
    asked: list[int] = []

    def score(pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
        asked.append(len(pairs))
        return token_f1_score(pairs)

    def offsets() -> dict[str, float]:
        return reward_offsets(cfg, tmp_path, StudySet(train, [], {}), score, lambda *_: None)

    found = offsets()
    constant = best_constant(train, train[:1], token_f1_score, overlap_reward, cfg.evaluation, cfg.seed)[0]
    expected = [overlap_reward(one) for one in token_f1_score([(study.target, constant) for study in train])]
    assert list(found) == [study.id for study in train]
    assert np.allclose(list(found.values()), expected)
    asked.clear()
    assert offsets() == found
    assert asked == []
