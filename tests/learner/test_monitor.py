"""When a run is to stop by itself, judged by its record alone."""

from __future__ import annotations

import math

import pytest

from configs.schema import StopConfig
from learner.monitor import fingerprint, is_best, judge_record, judge_reward, judge_steps, judge_validations
from reward_server.scorer import Description, ModelFile

SOUND = {"reward_mean": 1.0, "reward_std": 0.5, "kl_k3": 0.1, "logprob_gap_fresh_mean": 1e-5}


def steps(*rewards: float, std: float = 0.5) -> list[dict[str, float]]:
    return [
        SOUND | {"step": number, "reward_mean": reward, "reward_std": std} for number, reward in enumerate(rewards, 1)
    ]


def changes(name: str, *highs: float) -> list[dict[str, float]]:
    later = [
        {"step": 5 * n, f"{name}_change": high - 0.1, f"{name}_change_high": high} for n, high in enumerate(highs, 1)
    ]
    return [{"step": 0, name: 0.5}, *later]


def test_a_sound_run_goes_on() -> None:
    assert judge_steps(steps(*[1.0] * 30), StopConfig()) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_stops_the_run_and_is_not_worth_a_checkpoint(value: float) -> None:
    stop = judge_steps([SOUND, SOUND | {"grad_norm": value}], StopConfig())
    assert stop is not None
    assert "grad_norm" in stop.reason
    assert not stop.sound


@pytest.mark.parametrize(("name", "field"), [("kl_k3", "max_kl"), ("logprob_gap_fresh_mean", "max_logprob_gap")])
def test_a_limit_stops_the_run_with_the_number_and_the_field_and_null_takes_it_away(name: str, field: str) -> None:
    row = SOUND | {name: 1.5}
    stop = judge_steps([row], StopConfig())
    assert stop is not None
    assert "1.5" in stop.reason
    assert field in stop.reason
    assert stop.sound
    without = StopConfig()
    setattr(without, field, None)
    assert judge_steps([row], without) is None


def test_the_gap_is_judged_of_the_steps_own_weights_and_so_in_asynchronous_runs_too() -> None:
    stale = SOUND | {"staleness_max": 1.0, "logprob_gap_mean": 1.5}
    assert judge_steps([stale], StopConfig()) is None  # how far the policy has moved since, not a disagreement
    assert judge_steps([stale | {"logprob_gap_fresh_mean": 1.5}], StopConfig()) is not None
    without = {name: value for name, value in stale.items() if name != "logprob_gap_fresh_mean"}
    assert judge_steps([without], StopConfig()) is None


def test_only_the_last_step_is_held_against_the_limits() -> None:
    assert judge_steps([SOUND | {"kl_k3": 9.0}, SOUND], StopConfig()) is None


def test_the_reward_collapses_where_it_falls_by_deviations_of_the_first_samples() -> None:
    settings = StopConfig(window=3, collapse=2.0)
    assert judge_steps(steps(1, 1, 1, 0.1, 0.1, 0.1), settings) is None  # 1.8 deviations
    stop = judge_steps(steps(1, 1, 1, -0.1, -0.1, -0.1), settings)  # 2.2
    assert stop is not None
    assert "collapse" in stop.reason
    assert judge_steps(steps(1, 1, 1, -9, -9, -9), StopConfig(window=3, collapse=None)) is None


def test_the_deviation_counts_what_differs_between_steps_too() -> None:
    settings = StopConfig(window=2, collapse=1.0)
    assert judge_steps(steps(0, 2, -0.05, -0.05, std=0.5), settings) is None  # deviation sqrt(1 + 0.25), not 0.5
    assert judge_steps(steps(1, 1, -0.05, -0.05, std=0.5), settings) is not None


def test_a_collapse_is_not_seen_before_both_windows_are_full_nor_in_steps_without_a_reward() -> None:
    settings = StopConfig(window=3)
    assert judge_steps(steps(1, 1, 1, -9, -9), settings) is None
    failed: dict[str, float] = {"samples": 8.0, "failed": 8.0}
    assert judge_steps([*steps(1, 1, 1, -9, -9), failed], settings) is None
    assert judge_steps([*steps(1, 1, 1, -9, -9), failed, *steps(-9)], settings) is not None


def outage(*failed: float) -> list[dict[str, float]]:
    return [{"step": number, "samples": 8.0, "failed": count} for number, count in enumerate(failed, 1)]


def test_steps_in_a_row_whose_samples_have_no_score_stop_the_run_and_point_to_the_reward_servers() -> None:
    settings = StopConfig(max_failed=0.5, max_failed_steps=3)
    assert judge_steps(outage(8, 8), settings) is None
    assert judge_steps(outage(8, 8, 4), settings) is None
    assert judge_steps(outage(8, 4, 8, 8), settings) is None
    stop = judge_steps(outage(0, 8, 6, 5), settings)
    assert stop is not None
    assert "62% of the samples failed" in stop.reason
    assert "reward servers" in stop.reason
    assert "max_failed" in stop.reason
    assert stop.sound
    assert judge_steps(outage(8, 8, 8), StopConfig(max_failed=None)) is None


def test_a_stopped_run_stops_again_when_it_is_resumed_unless_servers_that_were_away_may_be_back() -> None:
    broken = [SOUND | {"step": 1.0, "kl_k3": 9.0}]
    assert judge_record(broken, [], StopConfig()) == judge_steps(broken, StopConfig()) is not None
    declined = changes("finding_f1", -0.01, -0.02)
    assert judge_record([SOUND], declined, StopConfig()) == judge_validations(declined, StopConfig()) is not None
    assert judge_record(broken, declined, StopConfig(max_kl=None, patience=None)) is None
    assert judge_record(outage(8, 8, 8), [], StopConfig()) is None
    assert judge_record([], [], StopConfig()) is None


def test_a_measure_must_decline_beyond_its_interval_so_many_times_in_a_row() -> None:
    settings = StopConfig(patience=2, measures=["finding_f1"])
    assert judge_validations(changes("finding_f1", -0.01), settings) is None
    assert judge_validations(changes("finding_f1", -0.01, 0.01, -0.01), settings) is None
    stop = judge_validations(changes("finding_f1", 0.01, -0.01, -0.02), settings)
    assert stop is not None
    assert "finding_f1" in stop.reason
    assert "-0.12" in stop.reason


def test_other_measures_than_those_named_and_no_patience_stop_nothing() -> None:
    rows = changes("unique", -0.1, -0.1, -0.1)
    assert judge_validations(rows, StopConfig(measures=["finding_f1"])) is None
    assert judge_validations(rows, StopConfig(measures=["unique"], patience=None)) is None
    assert judge_validations(rows, StopConfig(measures=["unique"])) is not None


def test_the_best_validation_is_the_highest_of_those_after_the_warm_start() -> None:
    start, *later = ({"step": step, "reward": reward} for step, reward in ((0, 9.0), (5, 1.0), (10, 2.0), (15, 2.0)))
    assert not is_best([start], "reward")
    assert is_best([start, *later[:1]], "reward")
    assert is_best([start, *later[:2]], "reward")
    assert not is_best([start, *later], "reward")
    assert not is_best([start, *later[:1], {"step": 10, "bleu4": 2.0}], "reward")
    assert is_best(later[:1], "reward")  # of step 0 there were no scores


def test_a_reward_of_another_model_is_another_reward_and_another_host_is_not() -> None:
    def description(sha: str, torch: str) -> Description:
        return Description("embedded", "embedded-3", "formula", ("a",), (ModelFile("minilm", sha),), {"torch": torch})

    first = fingerprint(description("aa", "2.13"))
    assert judge_reward(first, fingerprint(description("aa", "2.12"))) is None
    stop = judge_reward(first, fingerprint(description("bb", "2.13")))
    assert stop is not None
    assert "models" in stop.reason
    assert "bb" in stop.reason
