"""Which studies an RL step takes, and how checkpoints survive a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.checkpoints import RunState, latest_checkpoint, read_state, write_checkpoint
from learner.sampler import studies_for_step
from rrg.data.study import Report, Study
from rrg.errors import UserError

STUDIES = [
    Study(f"s{i}", "train", (), Report(), "test", findings=frozenset({"effusion"} if i % 3 == 0 else ()))
    for i in range(30)
]
ABNORMAL = {study.id for study in STUDIES if study.abnormal}


def chosen(step: int, seed: int = 0) -> tuple[str, ...]:
    return studies_for_step(STUDIES, seed=seed, step=step, count=5, abnormal_fraction=0.6)


def test_a_step_is_a_function_of_seed_and_number() -> None:
    assert [chosen(step) for step in range(8)] == [chosen(step) for step in range(8)]
    assert [chosen(step) for step in range(8)] != [chosen(step, seed=1) for step in range(8)]


def test_a_step_has_its_share_of_abnormal_studies_and_none_twice() -> None:
    for step in range(12):
        studies = chosen(step)
        assert len(set(studies)) == 5
        assert len(ABNORMAL & set(studies)) == 3


def test_an_epoch_visits_every_study_before_any_again() -> None:
    normal = [name for step in range(10) for name in chosen(step) if name not in ABNORMAL]
    assert len(set(normal)) == len(normal) == 20


def test_too_few_studies_are_named() -> None:
    with pytest.raises(UserError, match="studies_per_step"):
        studies_for_step(STUDIES, seed=0, step=0, count=25, abnormal_fraction=0.6)


def state(step: int) -> RunState:
    return RunState("rl", step, step, 1, "hash")


def fill(folder: Path) -> None:
    (folder / "deepspeed").mkdir()
    (folder / "policy").mkdir()


def test_the_newest_complete_checkpoint_is_found_and_older_ones_pruned(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, state(step), fill, keep=2)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert read_state(newest).step == 6
    assert len(list(tmp_path.glob("step_*"))) == 2


def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path, state(2), fill, keep=2)

    def crash(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, state(4), crash, keep=2)
    assert latest_checkpoint(tmp_path) == first


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path, state(2), fill, keep=3)
    second = write_checkpoint(tmp_path, state(4), fill, keep=3)
    (second / "state.json").write_text("{")
    assert latest_checkpoint(tmp_path) == first
