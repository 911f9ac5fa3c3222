"""The record of a run: what is kept when it is gone on with, and what the phases can read of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from learner.tracking import Tracker


def record(run_dir: Path) -> None:
    tracker = Tracker(run_dir, keep=("warm_start", 0))
    tracker.log("warm_start", 1, {"loss": 3.0})
    tracker.log("evaluation", 0, {"reward": 0.5})
    tracker.log("validation", 0, {"reward": 0.5})
    for step in (1, 2, 3):
        tracker.log("rl", step, {"reward_mean": float(step)})
        tracker.log("validation", step, {"reward": float(step)})
    tracker.log("evaluation", 3, {"reward": 0.6})
    tracker.close()


def test_a_resumed_run_keeps_steps_and_validations_up_to_its_checkpoint_and_does_the_rest_again(
    tmp_path: Path,
) -> None:
    record(tmp_path)
    tracker = Tracker(tmp_path, keep=("rl", 2))
    assert [row["step"] for row in tracker.rows("rl")] == [1, 2]
    assert [row["step"] for row in tracker.rows("validation")] == [0, 1, 2]
    tracker.log("rl", 3, {"reward_mean": 7.0})
    assert tracker.rows("rl")[-1] == {"step": 3, "reward_mean": 7.0}
    tracker.close()
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written if row["phase"] == "rl"] == [1, 2, 3]
    assert {row["phase"] for row in written} == {"warm_start", "rl", "validation"}


def test_a_run_whose_warm_start_goes_on_has_nothing_of_rl_left(tmp_path: Path) -> None:
    record(tmp_path)
    tracker = Tracker(tmp_path, keep=("warm_start", 1))
    assert not tracker.rows("rl")
    assert not tracker.rows("validation")
    tracker.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_half_a_line_of_a_killed_run_is_passed_over(tmp_path: Path) -> None:
    record(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "rl", "st')
    tracker = Tracker(tmp_path, keep=("rl", 3))
    assert len(tracker.rows("rl")) == 3
    tracker.close()


def test_tensorboard_shows_the_warm_start_after_a_resume_in_rl_and_steps_done_again_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Tracker(tmp_path, keep=("warm_start", 0))
    for step in (1, 2, 3, 4):
        first.log("warm_start", step, {"loss": 3.0})
    for step in (1, 2):
        first.log("rl", step, {"reward_mean": 0.0})
    first.close()
    time.sleep(1.1)  # the files are named by the second
    again = Tracker(tmp_path, keep=("rl", 1))
    again.log("rl", 2, {"reward_mean": 1.0})
    again.close()

    def shown(phase: str, name: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path / "tensorboard" / phase)).Reload()
        return [(one.step, one.value) for one in events.Scalars(f"{phase}/{name}")]

    assert shown("warm_start", "loss") == [(step, 3.0) for step in (1, 2, 3, 4)]
    assert shown("rl", "reward_mean") == [(1, 0.0), (2, 1.0)]
