"""Penalties on the form of a report that stay outside of the composite: repetition and length.

Contract: pure, at least 0, and exactly 0 for the reference itself.
"""

from __future__ import annotations

import math

from reward_server.text.words import words

# Reports repeat a little by nature ("... is normal. ... is normal."); 95 % of the Open-i findings lie below.
_NATURAL_REPETITION = 0.05
# Reports of one study differ in length by this factor without being wrong.
_LENGTH_TOLERANCE = 1.5
# Added to both lengths, so that a few words do not decide about very short reports.
_LENGTH_OFFSET = 5


def repeated_share(report: str) -> float:
    """Share of a report's 3-grams that stood before in it, in [0, 1)."""
    bases = [word.base for word in words(report)]
    grams = list(zip(bases, bases[1:], bases[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repetition(reference: str, hypothesis: str) -> float:
    """How much more the hypothesis repeats itself than the reference or natural reports do, in [0, 1)."""
    return max(0.0, repeated_share(hypothesis) - max(_NATURAL_REPETITION, repeated_share(reference)))


def length(reference: str, hypothesis: str) -> float:
    """Log ratio of the lengths in words beyond the tolerance, either way."""
    expected, stated = (len(words(report)) + _LENGTH_OFFSET for report in (reference, hypothesis))
    return max(0.0, abs(math.log(stated / expected)) - math.log(_LENGTH_TOLERANCE))
