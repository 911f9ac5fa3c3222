"""Which pairs can be scored, and scoring around those that can't: the same in this process and in a server.

Contract: a reason names the field, component or kind of failure and quotes no report.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from reward_server.errors import PairError
from reward_server.scorer import Pair

Score = dict[str, float]
Answer = Score | PairError
_LOG = logging.getLogger(__name__)


def size_or_error(pair: Pair) -> int | PairError:
    """Bytes of the pair as UTF-8, or why it is no text."""
    size = 0
    for name, text in zip(("reference", "hypothesis"), pair, strict=True):
        if not isinstance(text, str):
            return PairError(f"{name}: must be a string, not {type(text).__name__}")
        try:
            size += len(text.encode())
        except UnicodeEncodeError as error:
            return PairError(f"{name}: not valid Unicode text (a lone surrogate at character {error.start})")
    return size


def score_each(score: Callable[[Sequence[Pair]], list[Score]], pairs: Sequence[Pair]) -> list[Answer]:
    """The scores of all pairs, in order. A batch that fails is halved until the pairs that fail stand alone."""
    if not pairs:
        return []
    try:
        found = [_finite(components) for components in score(pairs)]
        if len(found) != len(pairs):
            raise ValueError(f"{len(found)} scores for {len(pairs)} pairs")
    except Exception as error:  # whatever a text does to a backend, the other pairs are scored
        # The message may quote a report: only its kind is told.
        _LOG.debug("the scorer failed", exc_info=error)
        if len(pairs) == 1:
            return [PairError(f"the backend failed on this pair: {type(error).__name__}")]
        half = len(pairs) // 2
        return score_each(score, pairs[:half]) + score_each(score, pairs[half:])
    return found


def _finite(components: Score) -> Answer:
    for name, value in components.items():
        if not math.isfinite(value):
            return PairError(f"the component {name} of this pair is {value}")
    return components
