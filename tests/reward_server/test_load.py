"""Many clients on three servers, one killed and started again: no wrong, lost or doubled score and no error."""

from __future__ import annotations

import pytest

from benchmarks.reward_load import Load, run_load


def test_a_killed_and_restarted_server_costs_no_score() -> None:
    report = run_load(Load(seconds=10, clients=16, pairs=64))
    print(report)
    assert report.errors == []
    assert report.clean
    assert report.calls > 30


@pytest.mark.slow
def test_a_minute_of_64_clients_with_a_killed_server_costs_no_score() -> None:
    report = run_load(Load())
    print(report)
    assert report.errors == []
    assert report.clean
