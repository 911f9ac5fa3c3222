"""F1 of the 14 CheXpert labels, in every form that papers print.

Contract: pure functions of label classes, one row a report in the order of `reward_server.text.labels.LABELS`: 0 blank,
1 positive, 2 negative, 3 uncertain (CheXbert's classes). Numbers are those of scikit-learn's `classification_report`
with `zero_division=0`: a label that nobody has or claims counts as 0 in the macro average, and so does a report without
any label in the average over reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from learner.evaluation.bootstrap import Array, Statistic, mean
from reward_server.text.labels import LABELS

Uncertain = Literal["positive", "negative"]
Classes = Sequence[Sequence[int]]

POSITIVE: Final = 1
UNCERTAIN: Final = 3
FIVE: Final = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The five of Irvin et al. 2019, which most papers report beside all 14."""

BLANK_ROW: Final = (0,) * len(LABELS)

SETS: Final[dict[str, tuple[str, ...]]] = {"14": LABELS, "5": FIVE}
POLICIES: Final[dict[str, Uncertain]] = {"uncertain_positive": "positive", "uncertain_negative": "negative"}
AVERAGES: Final = ("micro", "macro", "example")
MEASURES: Final = ("precision", "recall", "f1")


def label_statistics(
    references: Classes, hypotheses: Classes, known: Sequence[bool] | None = None
) -> dict[str, Statistic]:
    """All measures by name: `labels14_uncertain_positive_micro_f1` and so on, see `table_names`.

    Studies that are not `known` count nowhere, whatever their classes.
    """
    counted = np.ones((len(references), 1)) if known is None else np.asarray(known, dtype=np.float64)[:, None]
    found: dict[str, Statistic] = {}
    for (size, chosen), (policy, uncertain) in product(SETS.items(), POLICIES.items()):
        columns = [LABELS.index(label) for label in chosen]
        truth = positives(references, uncertain)[:, columns]
        predicted = positives(hypotheses, uncertain)[:, columns]
        for average, measure in product(AVERAGES, range(len(MEASURES))):
            found[table_name(size, policy, average, MEASURES[measure])] = _statistic(
                truth, predicted, average, measure, counted
            )
    return found


def table_name(size: str, policy: str, average: str, measure: str) -> str:
    """Name of a measure in `label_statistics`."""
    return f"labels{size}_{policy}_{average}_{measure}"


def table_names() -> Iterator[tuple[str, str, str]]:
    """(label set, policy, average) of every row of the table."""
    return product(SETS, POLICIES, AVERAGES)


def positives(classes: Classes, uncertain: Uncertain) -> npt.NDArray[np.bool_]:
    """Which labels count as present, [reports, 14]. Raises ValueError for rows of another length or unknown classes."""
    rows = np.asarray(classes, dtype=np.int64).reshape(len(classes), -1)
    if len(classes) and (rows.shape[1] != len(LABELS) or rows.min() < 0 or rows.max() > UNCERTAIN):
        raise ValueError(f"labels must be {len(LABELS)} classes of 0 to {UNCERTAIN} a report")
    counted = (POSITIVE, UNCERTAIN) if uncertain == "positive" else (POSITIVE,)
    return np.isin(rows, counted)


def _statistic(
    truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], average: str, measure: int, counted: Array
) -> Statistic:
    hits = truth & predicted
    if average == "example":
        counts = np.stack([side.sum(axis=1) for side in (hits, predicted, truth)], axis=-1).astype(np.float64)
        value = _measures(counts)[:, measure]
        return mean(value, of=counted[:, 0])
    # [reports, labels * 3]: hits, predicted, true of each label.
    columns = np.stack([hits, predicted, truth], axis=-1).reshape(len(hits), -1).astype(np.float64)
    of_sums = _micro if average == "micro" else _macro
    return Statistic(columns * counted, lambda sums: of_sums(sums, measure))


def _micro(sums: Array, measure: int) -> Array:
    return _measures(_by_label(sums).sum(axis=-2))[..., measure]


def _macro(sums: Array, measure: int) -> Array:
    return np.asarray(_measures(_by_label(sums))[..., measure].mean(axis=-1))


def _by_label(sums: Array) -> Array:
    return sums.reshape(*sums.shape[:-1], -1, 3)


def _measures(counts: Array) -> Array:
    """Precision, recall and F1 of [..., (hits, predicted, true)]; 0 / 0 counts as 0."""
    hits, predicted, truth = counts[..., 0], counts[..., 1], counts[..., 2]
    sides = [(hits, predicted), (hits, truth), (2 * hits, predicted + truth)]
    return np.stack([np.divide(a, b, out=np.zeros_like(b), where=b > 0) for a, b in sides], axis=-1)
