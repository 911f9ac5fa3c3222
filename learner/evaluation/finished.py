"""Measures of a finished evaluation, from what it left on the disk: resampled again without any model.

Contract: the numbers of `learner.evaluation.measures.Evaluation` for all measures that are made of values or counts of
single studies (`study_table`) or of the texts (BLEU).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from learner.evaluation import metrics
from learner.evaluation.bootstrap import Array, Statistic, mean
from learner.evaluation.measures import FINDING_COLUMNS, Pair, bleu_statistics

_TEXT: Final = frozenset({"reward", "rougeL", "repetition", "words", "shuffle_gap"})


def statistics_of(per_study: Mapping[str, Array], pairs: Sequence[Pair]) -> dict[str, Statistic]:
    """What can be resampled of one system: `per_study` are the columns of `study_table` [studies], `pairs` the
    (reference, hypothesis) of the same studies."""
    counts = np.stack([per_study[name] for name in FINDING_COLUMNS], axis=1)
    means = {name: mean(values) for name, values in per_study.items() if name not in FINDING_COLUMNS}
    return {
        **means,
        "reward_abnormal": mean(per_study["reward"], of=per_study["findings_true"] > 0),
        "finding_precision": Statistic(counts, metrics.finding_precision),
        "finding_recall": Statistic(counts, metrics.finding_recall),
        "finding_f1": Statistic(counts, metrics.finding_f1),
        **bleu_statistics(pairs),
    }


def components_of(per_study: Mapping[str, Array]) -> dict[str, Array]:
    """The reward's components among the columns of `study_table`, by the names that the reward servers give them."""
    names = [name for name in per_study if name not in _TEXT and name not in FINDING_COLUMNS]
    return {name.removeprefix("reward_"): per_study[name] for name in names}
