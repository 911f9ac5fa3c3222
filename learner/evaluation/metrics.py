"""Text and finding measures of generated reports: pure functions of strings and sets, no models.

Contract: every measure that is not a mean over studies (BLEU, micro F1) is split into *counts* of one report, which
add up over studies, and a function of the *sums* of those counts. So the value of a corpus and of each of its bootstrap
resamples come from the same lines (see `learner.evaluation.bootstrap`). Texts are cleaned ones (`rrg.data.sections`),
references and hypotheses alike, and their tokens are what white space separates: R2Gen's protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MAX_ORDER = 4
"""BLEU is reported for n-grams up to this order."""

BLEU_COUNTS = 2 * MAX_ORDER + 2
"""Length of `bleu_counts`."""

# The constants of pycocoevalcap: they keep its divisions finite and are kept so that the numbers are the same.
_TINY, _SMALL = 1e-15, 1e-9
_ROUGE_BETA = 1.2


def tokens(text: str) -> list[str]:
    """What white space separates, in lower case; in a cleaned text these are words, numbers and the full stop."""
    return text.lower().split()


def words(text: str) -> int:
    """Number of words of a report, punctuation not counted."""
    return sum(token[0].isalnum() for token in tokens(text))


def repetition(text: str, order: int = 4) -> float:
    """Share of a report's n-grams that repeat an earlier one of it, 0 for texts shorter than `order`.

    seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319), with its n = 4.
    """
    grams = _ngrams(tokens(text), order)
    return 1.0 - len(grams) / grams.total() if grams else 0.0


def unique(texts: Sequence[str]) -> int:
    """Number of different texts; case and white space make no difference."""
    return len({tuple(tokens(text)) for text in texts})


def bleu_counts(reference: str, hypothesis: str) -> Array:
    """Counts of one pair for `bleu`: [clipped matches of order 1..4, n-grams of order 1..4, length, reference length].

    With one reference, the "closest" reference length of pycocoevalcap is the reference's own.
    """
    ref, hyp = tokens(reference), tokens(hypothesis)
    orders = range(1, MAX_ORDER + 1)
    matches = [(_ngrams(ref, n) & _ngrams(hyp, n)).total() for n in orders]
    possible = [max(0, len(hyp) - n + 1) for n in orders]
    return np.array([*matches, *possible, len(hyp), len(ref)], dtype=np.float64)


def bleu(sums: Array, order: int) -> Array:
    """Corpus BLEU-`order` from sums of `bleu_counts`, shape [..., BLEU_COUNTS] -> [...].

    Papineni et al. 2002 as `pycocoevalcap.bleu` computes it, which the field reports: geometric mean of the corpus
    precisions of orders 1..`order`, no smoothing, brevity penalty of the corpus lengths.
    """
    matches, possible = sums[..., :order], sums[..., MAX_ORDER : MAX_ORDER + order]
    precision = np.prod((matches + _TINY) / (possible + _SMALL), axis=-1) ** (1.0 / order)
    ratio = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
    # An all-empty corpus has ratio ~ 0: exp(-large) is the 0 that is meant.
    penalty = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return np.asarray(precision * penalty)


def rouge_l(reference: str, hypothesis: str) -> float:
    """ROUGE-L of one pair, in [0, 1]; the corpus value is the mean. 0 where either side is empty.

    Lin 2004 as `pycocoevalcap.rouge` computes it: F of the longest common subsequence of the whole texts, beta = 1.2
    (recall weighs more).
    """
    ref, hyp = tokens(reference), tokens(hypothesis)
    common = _lcs_length(ref, hyp)
    if not common:
        return 0.0
    precision, recall, beta2 = common / len(hyp), common / len(ref), _ROUGE_BETA**2
    return (1 + beta2) * precision * recall / (recall + beta2 * precision)


def finding_counts(predicted: Set[str], truth: Set[str]) -> Array:
    """Counts of one study for the finding measures: [true positives, predicted, true], over finding codes."""
    return np.array([len(predicted & truth), len(predicted), len(truth)], dtype=np.float64)


def finding_precision(sums: Array) -> Array:
    """Micro precision over studies and codes from sums of `finding_counts`, [..., 3] -> [...]; 0 / 0 counts as 0."""
    return _ratio(sums[..., 0], sums[..., 1])


def finding_recall(sums: Array) -> Array:
    """Micro recall over studies and codes from sums of `finding_counts`, [..., 3] -> [...]; 0 / 0 counts as 0."""
    return _ratio(sums[..., 0], sums[..., 2])


def finding_f1(sums: Array) -> Array:
    """Micro F1 over studies and codes from sums of `finding_counts`, [..., 3] -> [...]; 0 / 0 counts as 0.

    Only stated findings count: a report that says "normal" of a normal study neither gains nor loses.
    """
    return _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _ngrams(items: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(items[start:] for start in range(order)), strict=False))


def _lcs_length(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, one row of the table at a time."""
    row = [0] * (len(b) + 1)
    for item in a:
        diagonal = 0
        for column, other in enumerate(b, start=1):
            above = row[column]
            row[column] = diagonal + 1 if item == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
