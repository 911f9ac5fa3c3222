"""The composite and the training reward."""

from __future__ import annotations

import math

import pytest

from configs.schema import RewardConfig
from reward_server.errors import RewardError
from reward_server.spec import radcliq_v1, reward_from_components

COMPONENTS = {"embedded": 0.5, "repetition": 0.2, "length": 0.4, "positive_f1": 0.6}


def test_the_formula_has_the_published_values_at_its_ends() -> None:
    assert radcliq_v1(1, 1, 1, 1) == pytest.approx(-1.44069, abs=1e-5)
    assert radcliq_v1(0, 0, 0, 0) == pytest.approx(2.4501430833, abs=1e-9)


def test_the_reward_is_the_negative_composite_with_penalties_and_the_positive_findings() -> None:
    cfg = RewardConfig(clip=None, repetition_weight=2.0, length_weight=0.5, positive_f1_weight=3.0)
    assert reward_from_components(COMPONENTS, cfg) == pytest.approx(-0.5 - 0.4 - 0.2 + 1.8)


def test_the_composite_is_cut_before_the_penalties() -> None:
    cfg = RewardConfig(clip=0.1, repetition_weight=0, length_weight=0, positive_f1_weight=0)
    assert reward_from_components(COMPONENTS, cfg) == pytest.approx(-0.1)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_missing_or_infinite_component_is_an_error_that_names_it(value: float | None) -> None:
    components = {**COMPONENTS, "length": value} if value is not None else {"embedded": 0.5, "repetition": 0.0}
    with pytest.raises(RewardError, match="'length'"):
        reward_from_components(components, RewardConfig())
