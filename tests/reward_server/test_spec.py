"""The composite and the training reward."""

from __future__ import annotations

import math

import pytest

from configs.schema import RewardConfig
from reward_server.errors import RewardError
from reward_server.spec import RADCLIQ_V0, RADCLIQ_V1, reward_from_components

COMPONENTS = {"embedded": 0.5, "repetition": 0.2, "length": 0.4, "positive_f1": 0.6}


def test_the_formulas_have_the_published_values_at_their_ends() -> None:
    assert RADCLIQ_V1(1, 1, 1, 1) == pytest.approx(-1.44069, abs=1e-5)
    assert RADCLIQ_V1(0, 0, 0, 0) == pytest.approx(2.4501430833, abs=1e-9)


def test_bleu_counts_against_a_report_in_v0_only() -> None:
    assert RADCLIQ_V0(0.5, 0.5, 0.5, 0.9) > RADCLIQ_V0(0.5, 0.5, 0.5, 0.1) + 0.5
    assert RADCLIQ_V1(0.5, 0.5, 0.5, 0.9) == pytest.approx(RADCLIQ_V1(0.5, 0.5, 0.5, 0.1), abs=1e-9)


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


def test_weighted_components_take_the_place_of_the_composite() -> None:
    cfg = RewardConfig(clip=None, repetition_weight=1.0, length_weight=0, positive_f1_weight=0)
    cfg.component_weights = {"embedded": -2.0, "bleu2": 0.5}
    assert reward_from_components({**COMPONENTS, "bleu2": 0.4}, cfg) == pytest.approx(-1.0 + 0.2 - 0.2)


def test_another_composite_can_be_named() -> None:
    cfg = RewardConfig(backend="published", composite="radcliq_v0", clip=None, positive_f1_weight=0)
    components = {"radcliq_v0": 1.5, "radcliq_v1": 9.0, "repetition": 0.0, "length": 0.0}
    assert reward_from_components(components, cfg) == pytest.approx(-1.5)


def test_a_component_of_no_weight_need_not_be_there() -> None:
    cfg = RewardConfig(clip=None, repetition_weight=0, length_weight=0, positive_f1_weight=0)
    assert reward_from_components({"embedded": 0.5}, cfg) == pytest.approx(-0.5)
