"""When steps start and who does their rollouts: no Ray, no engine, a clock that the test moves."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from learner.pipeline import EVALUATION, MAX_ATTEMPTS, Limits, Pipeline, Work, deal, startable
from rrg.errors import ProcessError

LIMITS = Limits(slots=2, timeout_s=10.0, start_timeout_s=30.0)


def pipeline(slots: int = 2) -> Pipeline[str]:
    return Pipeline(Limits(slots, LIMITS.timeout_s, LIMITS.start_timeout_s))


def test_a_synchronous_step_starts_when_the_one_before_has_been_learnt_from() -> None:
    assert list(startable(0, version=0, max_staleness=0, steps=9)) == [0]
    assert list(startable(1, version=0, max_staleness=0, steps=9)) == []
    assert list(startable(1, version=1, max_staleness=0, steps=9)) == [1]


@pytest.mark.parametrize("staleness", [0, 1, 2, 5])
def test_no_step_starts_too_early_and_every_step_starts_once(staleness: int) -> None:
    steps, started = 7, 0
    seen = []
    for version in range(steps):
        for step in startable(started, version, staleness, steps):
            assert step - version <= staleness
            seen.append(step)
            started = step + 1
        assert version in seen, "the step to be learnt from next has started"
    assert seen == list(range(steps))


def test_the_last_step_is_not_overrun() -> None:
    assert list(startable(8, version=7, max_staleness=3, steps=9)) == [8]
    assert list(startable(9, version=9, max_staleness=3, steps=9)) == []


def test_work_is_spread_over_the_runners_up_to_their_slots() -> None:
    one = pipeline(slots=2)
    one.add(0, 2)
    one.add(1, 3)
    assert one.assign({7, 4}, now=0.0) == [(4, Work(0, 0)), (7, Work(0, 1)), (4, Work(1, 0)), (7, Work(1, 1))]
    assert one.assign({7, 4}, now=0.0) == []
    one.finish(7, Work(0, 1), "b")
    assert one.assign({7, 4}, now=0.0) == [(7, Work(1, 2))]


def test_a_step_is_complete_when_all_its_parts_are_and_comes_in_their_order() -> None:
    one = pipeline()
    one.add(0, 2)
    assert not one.complete(0)
    one.assign({1, 2}, now=0.0)
    one.finish(2, Work(0, 1), "b")
    assert not one.complete(0)
    assert one.finished() == {Work(0, 1): "b"}
    one.finish(1, Work(0, 0), "a")
    assert one.complete(0)
    assert one.take(0) == ["a", "b"]
    assert not one.complete(0)
    assert one.finished() == {}
    assert not one.under_way


def test_a_step_without_work_is_complete_at_once() -> None:
    one = pipeline()
    one.add(3, 0)
    assert one.complete(3)
    assert one.take(3) == []


def test_lost_work_goes_first_to_another_runner() -> None:
    one = pipeline(slots=1)
    one.add(0, 2)
    one.add(1, 1)
    one.assign({1, 2}, now=0.0)
    assert one.assign({2}, now=0.0) == []
    one.finish(2, Work(0, 1), "b")
    assert one.assign({2}, now=0.0) == [(2, Work(0, 0))]
    with pytest.raises(AssertionError):
        one.finish(1, Work(0, 0), "of the lost runner")


def test_an_evaluation_goes_before_waiting_rollouts_and_is_no_step_to_be_saved() -> None:
    one = pipeline(slots=1)
    one.add(0, 3)
    one.assign({1}, now=0.0)
    one.add(EVALUATION, 2)
    order = []
    for _ in range(5):
        ((runner, work),) = one.assign({1}, now=0.0) or [(1, Work(0, 0))]
        one.finish(runner, work, "answer")
        order.append(work)
    assert order == [Work(0, 0), Work(EVALUATION, 0), Work(EVALUATION, 1), Work(0, 1), Work(0, 2)]
    assert all(work.step == 0 for work in one.finished())
    assert one.complete(EVALUATION)


def test_work_that_is_lost_again_and_again_ends_the_run() -> None:
    one = pipeline()
    one.add(0, 1)
    for _ in range(MAX_ATTEMPTS):
        assert one.assign({1}, now=0.0)
        one.assign(set(), now=0.0)
    with pytest.raises(ProcessError, match=f"lost {MAX_ATTEMPTS} times"):
        one.assign({1}, now=0.0)


def test_a_late_answer_is_named_and_work_behind_other_work_has_its_time_too() -> None:
    one = pipeline(slots=2)
    one.add(4, 2)
    one.assign({6}, now=100.0)
    one.check(now=110.0)
    with pytest.raises(ProcessError, match=r"10 s .*Work\(step=4, part=0\) at rollout actor 6$"):
        one.check(now=111.0)
    one.finish(6, Work(4, 0), "a")
    one.check(now=111.0)
    with pytest.raises(ProcessError, match="part=1"):
        one.check(now=121.0)


def test_the_wait_for_an_actor_to_come_back_ends() -> None:
    one = pipeline()
    one.add(0, 1)
    one.assign(set(), now=0.0)
    one.assign(set(), now=20.0)
    one.check(now=30.0)
    with pytest.raises(ProcessError, match="come back"):
        one.check(now=31.0)
    one.assign({3}, now=31.0)
    one.check(now=32.0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_dies_every_piece_is_answered_once_and_in_time(seed: int) -> None:
    """A random run: runners die and come back, answers come in any order, the learner takes steps as they complete."""
    rng = random.Random(seed)
    steps, parts, staleness = 12, 3, seed % 3
    one = pipeline(slots=1 if staleness == 0 else 2)
    at: dict[int, list[Work]] = {runner: [] for runner in range(3)}
    down: Counter[int] = Counter()
    version = started = deaths = 0
    answered: list[Work] = []
    born: dict[Work, int] = {}
    while version < steps:
        for step in startable(started, version, staleness, steps):
            one.add(step, parts)
            started = step + 1
        down.subtract(list(at))
        for runner, work in one.assign({runner for runner in at if down[runner] <= 0}, now=0.0):
            at[runner].append(work)
            born[work] = version
        busy = [runner for runner, pieces in at.items() if pieces]
        if not busy:
            continue
        runner = rng.choice(busy)
        if deaths < 2 and rng.random() < 0.1:
            at[runner].clear()
            down[runner] = 3
            deaths += 1
            continue
        work = at[runner].pop(0)
        one.finish(runner, work, str(work))
        answered.append(work)
        while one.complete(version):
            assert one.take(version) == [str(Work(version, part)) for part in range(parts)]
            version += 1
    assert sorted(answered) == [Work(step, part) for step in range(steps) for part in range(parts)]
    assert all(work.step - begun <= staleness for work, begun in born.items())


def test_studies_are_dealt_in_turn_and_nobody_gets_none() -> None:
    assert deal("abcde", 2) == ["ace", "bd"]
    assert deal("ab", 4) == ["a", "b"]
    assert deal("", 3) == []
