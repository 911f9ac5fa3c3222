"""The controls see what their names say, and find what can be found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from configs.schema import EvalConfig
from learner.evaluation import controls
from rrg.data.study import Study
from tests.evaluation.conftest import ABNORMAL, NORMAL, make_studies, overlap_reward, token_f1_score


@pytest.fixture
def train() -> list[Study]:
    return make_studies(50, split="train")


def test_the_most_frequent_training_report_is_given_to_all(train: list[Study], studies: list[Study]) -> None:
    assert controls.most_frequent(train, studies) == [NORMAL] * len(studies)


def test_the_best_constant_is_the_best_of_all_reports_when_all_are_tried(
    train: list[Study], studies: list[Study], cfg: EvalConfig
) -> None:
    everything = replace(cfg, constant_studies=50, constant_candidates=50)
    chosen = controls.best_constant(train, studies, token_f1_score, overlap_reward, everything, seed=0)

    def mean_reward(report: str) -> float:
        scored = token_f1_score([(study.target, report) for study in train])
        return float(np.mean([overlap_reward(components) for components in scored]))

    assert len(set(chosen)) == 1
    assert chosen[0] == max({study.target for study in train}, key=mean_reward)


def test_the_best_constant_never_sees_test_references_and_scores_few_pairs(
    train: list[Study], studies: list[Study], cfg: EvalConfig
) -> None:
    hidden = [replace(s, report=replace(s.report, findings="secret")) for s in studies]
    seen: list[tuple[str, str]] = []

    def score(pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
        seen.extend(pairs)
        return token_f1_score(pairs)

    numbered = [replace(s, report=replace(s.report, findings=f"{s.target} {i}")) for i, s in enumerate(train)]
    controls.best_constant(numbered, hidden, score, overlap_reward, cfg, seed=0)
    assert all("secret" not in reference for reference, _ in seen)
    # 6 candidates on a quarter of 40 studies, then the best of them on all.
    assert len(seen) == 6 * 10 + 1 * 40


def test_the_nearest_image_gives_its_report_whatever_the_scale_of_a_feature(train: list[Study]) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(train), 16)).astype(np.float32)
    features[:, 0] = 1000.0  # the same everywhere
    features[:, 1] *= 1000.0
    wanted = rng.permutation(len(train))
    noise = rng.normal(scale=0.05, size=features.shape).astype(np.float32) * features.std(axis=0)
    found = controls.nearest_image(train, features, (features + noise)[wanted])
    assert found == [train[index].target for index in wanted]


def test_features_that_do_not_belong_to_the_training_studies_are_refused(train: list[Study]) -> None:
    with pytest.raises(ValueError, match="50 training studies but 3 rows"):
        controls.nearest_image(train, np.zeros((3, 4), np.float32), np.zeros((1, 4), np.float32))


def test_nearest_findings_gives_a_report_with_the_same_findings(train: list[Study], studies: list[Study]) -> None:
    found = controls.nearest_findings(train, studies)
    assert all(ABNORMAL.get(text, frozenset()) == study.findings for text, study in zip(found, studies, strict=True))


def test_nearest_findings_takes_the_most_similar_set_where_none_is_equal(train: list[Study]) -> None:
    wanted = replace(train[0], findings=frozenset({"effusion", "cardiomegaly", "nodule"}))
    assert ABNORMAL[controls.nearest_findings(train, [wanted])[0]] == {"effusion", "cardiomegaly"}


def test_the_controls_do_not_depend_on_the_order_of_the_training_studies(
    train: list[Study], studies: list[Study]
) -> None:
    assert controls.nearest_findings(train, studies) == controls.nearest_findings(train[::-1], studies)
    assert controls.most_frequent(train, studies) == controls.most_frequent(train[::-1], studies)


def test_every_control_has_one_report_a_study_and_the_best_constant_is_the_same_again(
    train: list[Study], studies: list[Study], cfg: EvalConfig
) -> None:
    rng = np.random.default_rng(0)
    known, new = (rng.normal(size=(len(s), 4)).astype(np.float32) for s in (train, studies))
    best = controls.best_constant(train, studies, token_f1_score, overlap_reward, cfg, seed=7)
    assert best == controls.best_constant(train, studies, token_f1_score, overlap_reward, cfg, seed=7)
    assert len(best) == len(controls.nearest_image(train, known, new)) == len(studies)
