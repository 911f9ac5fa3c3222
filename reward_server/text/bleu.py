"""BLEU-2 as `CXR-Report-Metric` computes it for RadCliQ (through fast-bleu, with method-1 smoothing)."""

from __future__ import annotations

import math
from collections import Counter


def tokens(report: str) -> list[str]:
    """Lower case, a space before every full stop, split at single spaces (inner double spaces give empty tokens)."""
    return report.lower().replace(".", " .").strip(" ").split(" ")


def bleu2(reference: str, hypothesis: str) -> float:
    """BLEU of 1- and 2-grams in [0, 1] with the usual brevity penalty.

    Method-1 smoothing: a zero count of 2-grams becomes 0.1; without a common word, and for an empty report, it is 0.
    """
    expected, stated = tokens(reference), tokens(hypothesis)
    if not any(stated):
        return 0.0
    logs = 0.0
    for n in (1, 2):
        counts, limits = _ngrams(stated, n), _ngrams(expected, n)
        hits = float(sum((counts & limits).values()))
        if not hits and n == 1:
            return 0.0
        logs += 0.5 * math.log((hits or 0.1) / max(1, sum(counts.values())))
    brevity = 1.0 if len(stated) > len(expected) else math.exp(1 - len(expected) / len(stated))
    return brevity * math.exp(logs)


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))
