"""The scorer on real Open-i reports: who reads the right report off a study must win."""

from __future__ import annotations

from statistics import mean

import pytest

from configs.schema import RewardConfig
from reward_server.scorer import Pair, Scorer
from reward_server.spec import reward_from_components
from reward_server.text.statements import read_statements
from reward_server.text.words import sentences, words
from rrg.data.formats.openi import OpeniRecord

TEMPLATES = (
    "The heart is normal in size. The mediastinum is unremarkable. The lungs are clear.",
    "The heart size and pulmonary vascularity appear within normal limits. The lungs are free of focal airspace "
    "disease. No pleural effusion or pneumothorax is seen.",
    "Cardiomediastinal silhouette is within normal limits. Lungs are clear. No focal consolidation, pleural effusion "
    "or pneumothorax. No acute bony abnormality.",
)


def codes(record: OpeniRecord) -> frozenset[str]:
    return frozenset(part for code in record.mesh for part in code.split("/"))


@pytest.fixture(scope="module")
def abnormal(records: list[OpeniRecord]) -> list[OpeniRecord]:
    return [record for record in records if "normal" not in record.mesh]


@pytest.fixture(scope="module")
def pairs(abnormal: list[OpeniRecord]) -> dict[str, list[Pair]]:
    """Abnormal studies with the report of the study whose codes are nearest, and with constant normal reports."""
    test, train = abnormal[::20], [r for i, r in enumerate(abnormal) if i % 20]

    def nearest(record: OpeniRecord) -> str:
        mine = codes(record)
        best = max(train, key=lambda other: len(mine & codes(other)) / len(mine | codes(other)))
        return best.sections["findings"]

    texts = [record.sections["findings"] for record in test]
    return {
        "nearest": [(text, nearest(record)) for text, record in zip(texts, test, strict=True)],
        **{template: [(text, template) for text in texts] for template in TEMPLATES},
    }


def test_the_nearest_report_beats_every_normal_template_on_abnormal_studies(
    scorer: Scorer, pairs: dict[str, list[Pair]]
) -> None:
    scores = {name: scorer.score(some) for name, some in pairs.items()}
    rewards = {name: [reward_from_components(c, RewardConfig()) for c in some] for name, some in scores.items()}
    for template in TEMPLATES:
        won = mean(a > b for a, b in zip(rewards["nearest"], rewards[template], strict=True))
        assert won > 0.8
        assert mean(rewards["nearest"]) > mean(rewards[template]) + 1.0
        composites = [mean(c["embedded"] for c in scores[name]) for name in ("nearest", template)]
        assert composites[0] < composites[1] - 0.5


def test_most_sentences_of_real_reports_are_understood(records: list[OpeniRecord]) -> None:
    read = [
        bool(read_statements(words(sentence)))
        for record in records[::5]
        for sentence in sentences(record.sections["findings"])
        if "XXXX" not in sentence
    ]
    assert mean(read) > 0.93


def test_normal_studies_have_few_positive_findings_and_abnormal_ones_some(records: list[OpeniRecord]) -> None:
    def share(normal: bool) -> float:
        chosen = [r for r in records[::5] if ("normal" in r.mesh) == normal]
        return mean(
            any(s.positive for sentence in sentences(r.sections["findings"]) for s in read_statements(words(sentence)))
            for r in chosen
        )

    assert share(normal=True) < 0.08
    assert share(normal=False) > 0.92
