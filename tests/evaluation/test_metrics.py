"""BLEU, ROUGE-L and the finding measures give the field's numbers."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from rouge_score import rouge_scorer
from sacrebleu.metrics.bleu import BLEU

from learner.evaluation import metrics
from rrg.data.sections import clean
from tests.evaluation.conftest import PAIRS

# pycocoevalcap 1.2, Bleu(4) and Rouge() on PAIRS (run once, by hand); test_nlg.py asks the package itself.
PYCOCOEVALCAP_BLEU = [0.5975224246183024, 0.5025881110938548, 0.4248112602524275, 0.3634571695167033]
PYCOCOEVALCAP_ROUGE_L = 0.5894939584548691


def corpus(pairs: list[tuple[str, str]]) -> list[float]:
    sums = np.sum([metrics.bleu_counts(*pair) for pair in pairs], axis=0)
    return [float(metrics.bleu(sums, order)) for order in range(1, 5)]


def test_bleu_is_bit_for_bit_that_of_pycocoevalcap() -> None:
    assert corpus(PAIRS) == PYCOCOEVALCAP_BLEU


def test_rouge_l_is_bit_for_bit_that_of_pycocoevalcap() -> None:
    assert np.mean([metrics.rouge_l(*pair) for pair in PAIRS]) == PYCOCOEVALCAP_ROUGE_L


def test_bleu_agrees_with_sacrebleu_and_nltk_on_a_corpus() -> None:
    spaced = [(" ".join(metrics.tokens(ref)), " ".join(metrics.tokens(hyp))) for ref, hyp in PAIRS]
    references, hypotheses = [ref for ref, _ in spaced], [hyp for _, hyp in spaced]
    sacre = BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(hypotheses, [references])
    assert corpus(PAIRS)[3] == pytest.approx(sacre.score / 100, abs=1e-9)
    for order, value in enumerate(corpus(PAIRS), start=1):
        weights = (1 / order,) * order
        nltk = corpus_bleu([[ref.split()] for ref in references], [hyp.split() for hyp in hypotheses], weights)
        assert value == pytest.approx(nltk, abs=1e-9)


def test_bleu_by_hand() -> None:
    # Words 4/5 (heart once), pairs 2/4, 5 tokens against 6.
    reference, hypothesis = "the heart size is normal .", "heart heart size normal ."
    brevity = math.exp(1 - 6 / 5)
    assert corpus([(reference, hypothesis)])[0] == pytest.approx(4 / 5 * brevity, rel=1e-6)
    assert corpus([(reference, hypothesis)])[1] == pytest.approx(math.sqrt(4 / 5 * 2 / 4) * brevity, rel=1e-6)


def test_a_long_report_has_no_brevity_penalty_and_an_empty_or_foreign_one_scores_zero() -> None:
    assert corpus([("a b c d", "a b c d e e e e")])[0] == pytest.approx(0.5)
    assert corpus([("a b c d", "")]) == [0.0] * 4
    assert max(corpus([("a b c d", "e f g h")])) < 1e-9


def test_rouge_l_by_hand_and_zero_without_common_words() -> None:
    # Longest common subsequence "heart is normal" = 3, of 4 generated and 5 reference tokens.
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert metrics.rouge_l("the heart size is normal", "heart is quite normal") == pytest.approx(expected)
    assert metrics.rouge_l("a b", "c d") == metrics.rouge_l("a b", "") == metrics.rouge_l("", "") == 0.0


def test_rouge_l_agrees_with_the_precision_and_recall_of_rouge_score() -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    for first, second in combinations([text for pair in PAIRS for text in pair], 2):
        # rouge_score drops punctuation, so give both sides none.
        ref, hyp = (" ".join(t for t in clean(text).split() if t != ".") for text in (first, second))
        score = scorer.score(ref, hyp)["rougeL"]
        p, r = score.precision, score.recall
        expected = 2.44 * p * r / (r + 1.44 * p) if p and r else 0.0
        assert metrics.rouge_l(ref, hyp) == pytest.approx(expected)


def test_tokens_of_a_cleaned_text_are_words_numbers_and_full_stops() -> None:
    text = clean("No  effusion,\nHeart (large). A 1.4 cm well-defined nodule.")
    wanted = "no effusion heart large . a 1.4 cm well-defined nodule ."
    assert " ".join(metrics.tokens(text)) == wanted
    assert "well-defined" in metrics.tokens(text)
    assert metrics.words(text) == 9
    assert metrics.tokens("The  Heart") == ["the", "heart"]


def test_finding_f1_by_hand_over_studies() -> None:
    predicted = [{"effusion", "nodule"}, set(), {"edema"}, set()]
    truth = [{"effusion"}, {"scoliosis"}, {"edema", "effusion"}, set()]
    sums = np.sum([metrics.finding_counts(p, t) for p, t in zip(predicted, truth, strict=True)], axis=0)
    # 2 of 3 stated findings are true, 2 of 4 true ones are stated.
    assert metrics.finding_precision(sums) == pytest.approx(2 / 3)
    assert metrics.finding_recall(sums) == pytest.approx(2 / 4)
    assert metrics.finding_f1(sums) == pytest.approx(4 / 7)


def test_finding_measures_of_a_corpus_that_states_nothing_are_zero() -> None:
    sums = metrics.finding_counts(set(), {"effusion"})
    measures = [metrics.finding_precision(sums), metrics.finding_recall(sums), metrics.finding_f1(sums)]
    assert [float(value) for value in measures] == [0, 0, 0]


def test_repetition_is_the_share_of_four_word_runs_seen_before() -> None:
    assert metrics.repetition("no focal air space disease") == 0.0
    assert metrics.repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert metrics.repetition("clear") == 0.0


def test_unique_ignores_case_and_white_space() -> None:
    assert metrics.unique(["Lungs clear .", "lungs  clear .", "Heart large ."]) == 2
