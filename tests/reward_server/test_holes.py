"""What a policy could try instead of reading the image: each trick must lose to an honest report, by a margin."""

from __future__ import annotations

import random

import pytest

from configs.schema import RewardConfig
from reward_server.scorer import Scorer
from reward_server.spec import reward_from_components

ABNORMAL = (
    "The heart is mildly enlarged. There is a small left pleural effusion with patchy opacity in the left lower lobe. "
    "No pneumothorax. Right-sided PICC line is in place."
)
PARAPHRASE = (
    "Mild cardiomegaly. Small effusion on the left side and patchy left basilar opacity. There is no pneumothorax. "
    "PICC on the right side."
)
PARTIAL = "The heart is enlarged. Small left pleural effusion. No pneumothorax."
TEMPLATE = "The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax."
NORMAL = "Heart size is normal. Lungs are clear. No focal airspace disease or pleural effusion. No pneumothorax."
OTHER = (
    "Degenerative changes of the spine. There is a calcified granuloma in the right upper lobe. "
    "Lungs are hyperinflated with flattened diaphragms."
)


def shuffled(report: str) -> str:
    words = report.replace(".", "").lower().split()
    random.Random(0).shuffle(words)
    return " ".join(words) + "."


def swapped(report: str) -> str:
    return report.replace("left", "#").replace("Right", "Left").replace("right", "left").replace("#", "right")


@pytest.fixture(scope="module")
def score(scorer: Scorer):  # type: ignore[no-untyped-def]
    return lambda reference, hypothesis: scorer.score([(reference, hypothesis)])[0]


@pytest.fixture(scope="module")
def reward(score):  # type: ignore[no-untyped-def]
    return lambda reference, hypothesis: reward_from_components(score(reference, hypothesis), RewardConfig())


def test_the_reference_itself_gets_the_best_of_every_component(score) -> None:  # type: ignore[no-untyped-def]
    for report in (ABNORMAL, NORMAL, TEMPLATE, OTHER):
        components = score(report, report)
        assert components["embedded"] == pytest.approx(-1.44069, abs=1e-4)
        assert components["repetition"] == components["length"] == 0
        assert components["positive_f1"] == 1


@pytest.mark.parametrize(("times", "cost"), [(2, 1.0), (3, 1.7)])
def test_repeating_the_reference_costs_much(reward, times: int, cost: float) -> None:  # type: ignore[no-untyped-def]
    assert reward(ABNORMAL, " ".join([ABNORMAL] * times)) < reward(ABNORMAL, ABNORMAL) - cost


def test_an_appended_random_report_costs_much(reward) -> None:  # type: ignore[no-untyped-def]
    assert reward(ABNORMAL, f"{ABNORMAL} {OTHER}") < reward(ABNORMAL, ABNORMAL) - 1.0
    assert reward(NORMAL, f"{NORMAL} {OTHER}") < reward(NORMAL, TEMPLATE) - 1.0


def test_saying_also_the_opposite_costs_much(reward) -> None:  # type: ignore[no-untyped-def]
    assert reward(ABNORMAL, f"{ABNORMAL} {TEMPLATE}") < reward(ABNORMAL, ABNORMAL) - 1.0
    assert reward(ABNORMAL, f"{ABNORMAL} {TEMPLATE}") < reward(ABNORMAL, PARAPHRASE)


def test_swapping_left_and_right_loses_to_a_paraphrase(score, reward) -> None:  # type: ignore[no-untyped-def]
    assert score(ABNORMAL, swapped(ABNORMAL))["embedded"] > -1.44 + 0.8
    assert reward(ABNORMAL, swapped(ABNORMAL)) < reward(ABNORMAL, PARAPHRASE) - 0.5


def test_a_flipped_negation_costs_much(score, reward) -> None:  # type: ignore[no-untyped-def]
    assert reward(ABNORMAL, ABNORMAL.replace("No ", "There is ")) < reward(ABNORMAL, ABNORMAL) - 0.7
    flipped = NORMAL.replace("No ", "There is ")
    assert score(NORMAL, flipped)["embedded"] > score(NORMAL, TEMPLATE)["embedded"] + 1.5
    assert reward(NORMAL, flipped) < reward(NORMAL, TEMPLATE) - 2.0


def test_denying_every_finding_gets_nothing(score) -> None:  # type: ignore[no-untyped-def]
    denied = "The heart is not enlarged. There is no left pleural effusion and no opacity in the left lower lobe."
    assert score(ABNORMAL, denied)["graph_f1"] == score(ABNORMAL, denied)["positive_f1"] == 0


def test_a_word_salad_of_the_reference_loses_to_decent_reports(score, reward) -> None:  # type: ignore[no-untyped-def]
    salad = shuffled(ABNORMAL)
    assert score(ABNORMAL, salad)["embedded"] > score(ABNORMAL, PARTIAL)["embedded"] + 0.5
    assert reward(ABNORMAL, salad) < reward(ABNORMAL, PARTIAL) - 0.5
    assert reward(NORMAL, shuffled(NORMAL)) < reward(NORMAL, TEMPLATE) - 0.5
    assert score(ABNORMAL, salad)["bertscore"] < score(ABNORMAL, PARAPHRASE)["bertscore"] - 0.1


@pytest.mark.parametrize("broken", ["No focal airspace pleural effusion.", "No focal is seen."])
def test_broken_grammar_earns_less_than_leaving_it_out(score, broken: str) -> None:  # type: ignore[no-untyped-def]
    frame = "Heart size is normal. Lungs are clear. {} No pneumothorax."
    clean = "No pleural effusion." if "effusion" in broken else ""
    assert score(NORMAL, frame.format(broken))["embedded"] > score(NORMAL, frame.format(clean))["embedded"] + 0.04


def test_the_same_finding_in_other_words_is_the_same(score) -> None:  # type: ignore[no-untyped-def]
    components = score("Heart size within normal limits.", "The heart is normal in size.")
    assert components["graph_f1"] == components["label_similarity"] == components["positive_f1"] == 1


def test_a_paraphrase_beats_a_template_and_a_template_an_empty_report(reward) -> None:  # type: ignore[no-untyped-def]
    assert reward(ABNORMAL, PARAPHRASE) > reward(ABNORMAL, PARTIAL) + 0.5
    assert reward(ABNORMAL, PARTIAL) > reward(ABNORMAL, TEMPLATE) + 1.5
    assert reward(ABNORMAL, TEMPLATE) > reward(ABNORMAL, "") + 0.5


def test_an_invented_finding_costs_more_than_a_hedged_one(reward) -> None:  # type: ignore[no-untyped-def]
    invented = f"{NORMAL} There is a nodule in the right upper lobe."
    hedged = f"{NORMAL} There is a possible nodule in the right upper lobe."
    assert reward(NORMAL, NORMAL) > reward(NORMAL, hedged) + 0.5 > reward(NORMAL, invented) + 0.5
