"""The label tables hold scikit-learn's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from learner.evaluation.labels import FIVE, POLICIES, label_statistics, positives, table_name, table_names
from reward_server.text.labels import LABELS


@pytest.fixture(scope="module")
def classes() -> tuple[list[list[int]], list[list[int]]]:
    rng = np.random.default_rng(0)
    reference = rng.choice(4, size=(200, 14), p=[0.7, 0.15, 0.1, 0.05])
    hypothesis = np.where(rng.random((200, 14)) < 0.6, reference, rng.choice(4, size=(200, 14)))
    reference[:, LABELS.index("Fracture")] = hypothesis[:, LABELS.index("Fracture")] = 2  # nobody has one
    reference[:5] = hypothesis[:7] = 0  # reports without labels
    return reference.tolist(), hypothesis.tolist()


@pytest.mark.parametrize(("size", "policy", "average"), list(table_names()))
def test_every_row_is_that_of_scikit_learn(
    size: str, policy: str, average: str, classes: tuple[list[list[int]], list[list[int]]]
) -> None:
    chosen = [LABELS.index(name) for name in (LABELS if size == "14" else FIVE)]
    truth, predicted = (positives(side, POLICIES[policy])[:, chosen] for side in classes)
    named = {"micro": "micro", "macro": "macro", "example": "samples"}[average]
    expected = precision_recall_fscore_support(truth, predicted, average=named, zero_division=0)[:3]
    found = label_statistics(*classes)
    values = [found[table_name(size, policy, average, measure)].value for measure in ("precision", "recall", "f1")]
    assert values == pytest.approx(expected, abs=1e-12)


def test_an_uncertain_label_counts_by_the_policy() -> None:
    rows = [[0, 1, 2, 3] + [0] * 10]
    assert positives(rows, "positive")[0, :4].tolist() == [False, True, False, True]
    assert positives(rows, "negative")[0, :4].tolist() == [False, True, False, False]


def test_rows_that_are_no_label_classes_are_refused() -> None:
    for rows in ([[1, 2, 3]], [[4] * 14], [[-1] * 14]):
        with pytest.raises(ValueError, match="14 classes of 0 to 3"):
            positives(rows, "positive")
