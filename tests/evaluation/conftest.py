"""Studies and a plain scorer of the evaluation's tests: no server, no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

from configs.schema import EvalConfig
from learner.evaluation.metrics import tokens
from rrg.data.study import Report, Study

PAIRS: list[tuple[str, str]] = [
    (
        "The heart is enlarged. There is a small left pleural effusion, with basilar atelectasis.",
        "The heart is normal in size. There is a small right pleural effusion.",
    ),
    ("No pneumothorax. No pleural effusion.", "No pneumothorax or pleural effusion. No focal consolidation."),
    ("Lungs are clear bilaterally, heart size within normal limits.", "The lungs are clear."),
    ("Stable degenerative changes of the thoracic spine.", "Stable degenerative changes of the thoracic spine."),
]
"""(reference, hypothesis), written for these tests."""

ABNORMAL: dict[str, frozenset[str]] = {
    "The heart is enlarged. Lungs are clear.": frozenset({"cardiomegaly"}),
    "There is a left pleural effusion. The heart is normal.": frozenset({"effusion"}),
    "There is a right pneumothorax.": frozenset({"pneumothorax"}),
    "There is scoliosis of the thoracic spine. Lungs are clear.": frozenset({"scoliosis"}),
    "The heart is enlarged and there is a small pleural effusion.": frozenset({"cardiomegaly", "effusion"}),
}
NORMAL = "The heart is normal. Lungs are clear. No pleural effusion or pneumothorax."


def token_f1_score(pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
    """A deterministic scorer: F1 of the words as multisets, and the share of words that match."""
    return [_token_f1(*pair) for pair in pairs]


def _token_f1(reference: str, hypothesis: str) -> dict[str, float]:
    ref, hyp = Counter(tokens(reference)), Counter(tokens(hypothesis))
    common = (ref & hyp).total()
    return {"overlap": 2 * common / max(1, ref.total() + hyp.total()), "bleu2": common / max(1, hyp.total())}


def overlap_reward(components: Mapping[str, float]) -> float:
    """The reward of `token_f1_score`'s components."""
    return components["overlap"]


def make_studies(count: int, split: str = "test", known: bool = True) -> list[Study]:
    """`count` studies, every second one normal, the others with the reports and findings of `ABNORMAL` in turn."""
    abnormal = list(ABNORMAL.items())
    studies = []
    for index in range(count):
        text, findings = abnormal[index // 2 % len(abnormal)] if index % 2 else (NORMAL, frozenset[str]())
        studies.append(
            Study(
                id=f"{split}{index:03d}",
                split=split,  # type: ignore[arg-type]
                images=(),
                report=Report(findings=text),
                source="test",
                findings=findings if known else None,
            )
        )
    return studies


@pytest.fixture
def cfg() -> EvalConfig:
    return EvalConfig(permutations=3, bootstrap=500, constant_studies=40, constant_candidates=6)


@pytest.fixture
def studies() -> list[Study]:
    return make_studies(60)
