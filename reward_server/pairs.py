"""Which pairs and texts can be scored, explained or labelled, and doing so around those that can't: here and in a
server alike.

Contract: a reason names the field, component or kind of failure and quotes no report.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from reward_server.errors import PairError
from reward_server.explanation import Explained, Explanation
from reward_server.scorer import Labels, Pair

Score = dict[str, float]
Answer = Score | PairError
Labelled = Labels | PairError
_LOG = logging.getLogger(__name__)

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")


def size_or_error(pair: Pair) -> int | PairError:
    """Bytes of the pair as UTF-8, or why it is no text."""
    size = 0
    for name, text in zip(("reference", "hypothesis"), pair, strict=True):
        part = text_size_or_error(text, name)
        if isinstance(part, PairError):
            return part
        size += part
    return size


def text_size_or_error(text: str, name: str = "text") -> int | PairError:
    """Bytes of the text as UTF-8, or why it is none."""
    if not isinstance(text, str):
        return PairError(f"{name}: must be a string, not {type(text).__name__}")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        return PairError(f"{name}: not valid Unicode text (a lone surrogate at character {error.start})")


def score_each(score: Callable[[Sequence[Pair]], list[Score]], pairs: Sequence[Pair]) -> list[Answer]:
    """The scores of all pairs, in order. A batch that fails is halved until the pairs that fail stand alone."""
    return _each(lambda part: [_finite(components) for components in score(part)], pairs, "pair")


def explain_each(explain: Callable[[Sequence[Pair]], list[Explanation]], pairs: Sequence[Pair]) -> list[Explained]:
    """The explanations of all pairs, like `score_each`."""
    return _each(lambda part: [*explain(part)], pairs, "pair")


def label_each(label: Callable[[Sequence[str]], list[Labels]], texts: Sequence[str]) -> list[Labelled]:
    """The labels of all texts, like `score_each`."""
    return _each(lambda part: [*label(part)], texts, "text")


def _each(work: Callable[[Sequence[I]], list[A | PairError]], items: Sequence[I], name: str) -> list[A | PairError]:
    if not items:
        return []
    try:
        found = work(items)
        if len(found) != len(items):
            raise ValueError(f"{len(found)} outcomes for {len(items)} {name}s")
    except Exception as error:  # whatever a text does to a backend, the others are scored
        # The message may quote a report: only its kind is told.
        _LOG.debug("the scorer failed", exc_info=error)
        if len(items) == 1:
            return [PairError(f"the backend failed on this {name}: {type(error).__name__}")]
        half = len(items) // 2
        return _each(work, items[:half], name) + _each(work, items[half:], name)
    return found


def _finite(components: Score) -> Answer:
    for name, value in components.items():
        if not math.isfinite(value):
            return PairError(f"the component {name} of this pair is {value}")
    return components
