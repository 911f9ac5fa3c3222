"""The evaluation tells a model that looks at the image from one that does not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from configs.schema import EvalConfig
from learner.evaluation.measures import (
    PAIRS_AT_ONCE,
    Evaluation,
    compare,
    donor_studies,
    evaluate,
    finding_truth,
    score_pairs,
    study_table,
    true_findings,
)
from learner.evaluation.system import Task, measure
from rrg.data.study import Study
from rrg.errors import UserError
from tests.evaluation.conftest import NORMAL, make_studies, overlap_reward, token_f1_score


def run(studies: list[Study], hypotheses: list[str], cfg: EvalConfig, seed: int = 0) -> Evaluation:
    return evaluate(studies, hypotheses, token_f1_score, overlap_reward, cfg, seed)


def copies(studies: list[Study]) -> list[str]:
    return [study.target for study in studies]


def test_a_constant_report_has_a_shuffle_gap_of_exactly_zero(studies: list[Study], cfg: EvalConfig) -> None:
    result = run(studies, [NORMAL] * len(studies), cfg)
    assert result.metrics["shuffle_gap"] == [0.0, 0.0, 0.0]
    assert result.metrics["finding_f1"] == result.metrics["finding_f1_shuffled"] == 0.0
    assert result.metrics["unique"] == 1


def test_copied_references_have_a_gap_with_an_interval_above_zero(studies: list[Study], cfg: EvalConfig) -> None:
    metrics = run(studies, copies(studies), cfg).metrics
    assert metrics["reward"] == metrics["reward_abnormal"] == metrics["rougeL"] == 1.0
    assert metrics["bleu4"] == pytest.approx(1.0)
    gap, low, high = metrics["shuffle_gap"]  # type: ignore[misc]
    assert 0 < low < gap < high


def test_reports_that_are_good_but_unrelated_to_the_study_have_no_gap(cfg: EvalConfig) -> None:
    studies = make_studies(200)
    unrelated = list(np.random.default_rng(0).permutation(copies(studies)))
    _, low, high = run(studies, unrelated, cfg).metrics["shuffle_gap"]  # type: ignore[misc]
    assert low < 0 < high


def test_the_gap_is_the_matched_reward_minus_the_mean_reward_of_exchanged_reports(
    studies: list[Study], cfg: EvalConfig
) -> None:
    hypotheses = [text.replace("small", "large") for text in copies(studies)]
    rewards = []
    for donor in donor_studies(len(studies), cfg.permutations, seed=0):
        pairs = [(study.target, hypotheses[index]) for study, index in zip(studies, donor, strict=True)]
        rewards.append(np.mean([overlap_reward(scored) for scored in token_f1_score(pairs)]))
    result = run(studies, hypotheses, cfg)
    expected = result.metrics["reward"] - np.mean(rewards)  # type: ignore[operator]
    assert result.metrics["shuffle_gap"][0] == pytest.approx(expected)  # type: ignore[index]


def test_the_gap_interval_is_not_too_narrow_where_reports_differ_in_how_they_fare_elsewhere() -> None:
    """A report that suits its study well suits others badly: the spread that a bootstrap by receiver alone misses."""
    cfg = EvalConfig(permutations=3, bootstrap=300)
    studies = [replace(study, id=str(i)) for i, study in enumerate(make_studies(60))]
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        special = rng.normal(size=60)
        texts = [f"{index}" for index in range(60)]
        numbered = [replace(s, report=replace(s.report, findings=str(i))) for i, s in enumerate(studies)]

        def score(pairs: list[tuple[str, str]], special: np.ndarray = special) -> list[dict[str, float]]:  # type: ignore[type-arg]
            return [{"r": 1.0 if ref == hyp else -special[int(hyp)]} for ref, hyp in pairs]

        result = evaluate(numbered, texts, score, lambda scored: scored["r"], cfg, seed=1)
        _, low, high = result.metrics["shuffle_gap"]  # type: ignore[misc]
        covered += low <= 1.0 <= high
    assert covered / 150 >= 0.92


def test_every_permutation_moves_every_study_and_none_meets_a_donor_twice() -> None:
    donors = donor_studies(50, 4, seed=0)
    assert all(sorted(row) == list(range(50)) for row in donors)
    assert (donors != np.arange(50)).all()
    assert all(len(set(column)) == 4 for column in donors.T)
    assert (donor_studies(50, 4, seed=0) == donors).all()
    assert (donor_studies(50, 4, seed=1) != donors).any()


def test_too_few_studies_for_the_permutations_are_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"limit_test"):
        donor_studies(3, 3, seed=0)


def test_each_different_pair_is_scored_once(studies: list[Study], cfg: EvalConfig) -> None:
    seen: list[tuple[str, str]] = []

    def score(pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
        seen.extend(pairs)
        return token_f1_score(pairs)

    evaluate(studies, [NORMAL] * len(studies), score, overlap_reward, cfg, seed=0)
    assert sorted(seen) == sorted({(study.target, NORMAL) for study in studies})


def test_finding_f1_is_counted_from_the_text_against_the_codes(cfg: EvalConfig) -> None:
    studies = make_studies(8)
    reports = [NORMAL] * 8
    reports[1] = "The heart is enlarged."  # true
    reports[3] = "There is a right pneumothorax."  # of a study with an effusion
    metrics = run(studies, reports, cfg).metrics
    # Abnormal: cardiomegaly, effusion, pneumothorax, scoliosis.
    assert metrics["finding_precision"] == pytest.approx(1 / 2)
    assert metrics["finding_recall"] == pytest.approx(1 / 4)
    assert metrics["finding_f1"] == pytest.approx(1 / 3)


def test_without_codes_the_truth_is_read_from_the_reference(cfg: EvalConfig) -> None:
    studies = make_studies(20, known=False)
    assert true_findings(studies[1]) == {"cardiomegaly"}
    result = run(studies, copies(studies), cfg)
    assert result.finding_truth == "reference"
    assert result.metrics["finding_f1"] == 1.0


def test_components_keep_their_names_unless_a_corpus_measure_has_it(studies: list[Study], cfg: EvalConfig) -> None:
    result = run(studies, ["The heart is enlarged."] * len(studies), cfg)
    matched = token_f1_score([(study.target, "The heart is enlarged.") for study in studies])
    assert result.metrics["overlap"] == pytest.approx(np.mean([scored["overlap"] for scored in matched]))
    assert result.metrics["reward_bleu2"] == pytest.approx(np.mean([scored["bleu2"] for scored in matched]))
    assert result.metrics["reward_bleu2"] != result.metrics["bleu2"]
    assert result.per_study["overlap"].shape == (len(studies),)


def test_reward_of_abnormal_studies_is_undefined_where_there_are_none(cfg: EvalConfig) -> None:
    studies = make_studies(20)[::2]
    result = run(studies, copies(studies), cfg)
    assert result.metrics["reward_abnormal"] is None
    assert "reward_abnormal" not in compare(result, result, cfg, seed=0)


def test_a_better_system_is_told_from_a_worse_one_study_by_study(studies: list[Study], cfg: EvalConfig) -> None:
    better, worse = run(studies, copies(studies), cfg), run(studies, [NORMAL] * len(studies), cfg)
    gains = compare(better, worse, cfg, seed=0)
    for name in ("reward", "reward_abnormal", "bleu4", "rougeL", "finding_f1", "shuffle_gap"):
        assert gains[name].low > 0, name
        assert math.isclose(gains[name].value, better.statistics[name].value - worse.statistics[name].value)
    assert set(compare(worse, worse, cfg, seed=0)["reward"]) == {0.0}


def test_reports_of_a_run_that_were_cut_off_measure_the_same_in_its_summary_and_in_learner_evaluate(
    studies: list[Study], cfg: EvalConfig
) -> None:
    texts = [study.target.rsplit(" ", 3)[0] for study in studies]
    of_run = run(studies, texts, cfg)
    task = Task(
        ids=of_run.study_ids,
        references=tuple(study.target for study in studies),
        findings=tuple(study.findings for study in studies),
        prepared=True,
        meteor=False,
    )
    system = measure(task, {"system": texts}, None, None, lambda *_: None)["system"]
    for name, statistic in {**system.statistics["text"], **system.statistics["findings"]}.items():
        if name in of_run.statistics:
            assert statistic.value == of_run.statistics[name].value, name


def test_components_have_one_order_whatever_that_of_the_scorer(studies: list[Study], cfg: EvalConfig) -> None:
    def reversed_score(pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
        return [dict(reversed(row.items())) for row in token_f1_score(pairs)]

    one = run(studies, copies(studies), cfg)
    other = evaluate(studies, copies(studies), reversed_score, overlap_reward, cfg, seed=0)
    assert list(one.metrics) == list(other.metrics)
    assert study_table(one) == study_table(other)


def test_systems_on_different_studies_are_not_compared(studies: list[Study], cfg: EvalConfig) -> None:
    first, second = run(studies, copies(studies), cfg), run(studies[:-1], copies(studies[:-1]), cfg)
    with pytest.raises(ValueError, match="different studies"):
        compare(first, second, cfg, seed=0)


def test_findings_count_as_codes_only_where_the_source_has_codes(studies: list[Study], cfg: EvalConfig) -> None:
    coded = [replace(study, source="rendered_openi") for study in studies]
    partly = [*coded[1:], replace(coded[0], findings=None)]
    assert finding_truth(coded) == "mesh"
    assert finding_truth(partly) == "mesh+reference"
    assert finding_truth(studies) == finding_truth([]) == "reference"
    for some in (coded, partly, studies):
        assert run(some, copies(some), cfg).finding_truth == finding_truth(some), "the summary has other words for it"


@pytest.mark.parametrize("different", [0, 1, PAIRS_AT_ONCE, 2 * PAIRS_AT_ONCE + 1])
def test_pairs_are_scored_in_calls_that_a_deadline_allows_for_and_each_once(different: int) -> None:
    pairs = [(f"reference {i}", f"hypothesis {i}") for i in range(different)]
    asked: list[tuple[str, str]] = []

    def score(part: list[tuple[str, str]]) -> list[dict[str, float]]:
        assert 0 < len(part) <= PAIRS_AT_ONCE
        asked.extend(part)
        return [{"number": float(reference.split()[1])} for reference, _ in part]

    assert score_pairs([*pairs, *pairs], score) == {pair: {"number": float(i)} for i, pair in enumerate(pairs)}
    assert asked == pairs
