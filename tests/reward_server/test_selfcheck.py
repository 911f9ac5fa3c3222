"""A scorer that can't be right never serves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pytest

from reward_server.errors import RewardSetupError
from reward_server.scorer import Description, ModelFile, Pair, Scorer, ScorerOptions
from reward_server.selfcheck import load_scorer, self_check


class Formula:
    """A scorer of the tests that computes `embedded` by a function of the pair and its place."""

    description = Description("embedded", "f", "f", ("embedded",), (ModelFile("weights", "cd" * 32),), {})

    def __init__(self, formula: Callable[[Pair, int], float]) -> None:
        self._formula = formula

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        return [{"embedded": self._formula(pair, place)} for place, pair in enumerate(pairs)]

    def label(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [(0,) * 14 for _ in texts]

    def statistics(self) -> Mapping[str, float]:
        return {}


def distance(pair: Pair, place: int) -> float:
    return abs(len(pair[0]) - len(pair[1]))


def test_a_real_scorer_passes(scorer: Scorer) -> None:
    self_check(scorer)
    self_check(Formula(distance))


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        (lambda pair, place: 1.0, "of a copy is 1.000, of another report 1.000"),
        (lambda pair, place: math.nan if not pair[1] else distance(pair, place), "embedded is nan"),
        (lambda pair, place: distance(pair, place) + 0.01 * place, "depend on the order"),
    ],
)
def test_a_scorer_that_cannot_be_right_is_refused_with_the_reason_and_its_weights(
    formula: Callable[[Pair, int], float], reason: str
) -> None:
    with pytest.raises(RewardSetupError, match=reason) as caught:
        self_check(Formula(formula))
    assert "weights cdcdcdcdcdcd" in str(caught.value)


def test_loading_an_unknown_backend_names_it() -> None:
    with pytest.raises(RewardSetupError, match="'embeded'"):
        load_scorer(ScorerOptions("embeded"))
