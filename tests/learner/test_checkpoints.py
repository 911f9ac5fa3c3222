"""Which settings make a run another run, how checkpoints survive a crash, and what they keep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.trajectory import BASELINE, Trajectory
from configs.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    LearnerConfig,
    ModelConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    SFTConfig,
)
from learner.checkpoints import (
    Best,
    FormatError,
    RunState,
    config_hash,
    latest_checkpoint,
    read_state,
    write_checkpoint,
)
from learner.inflight import read_inflight, write_inflight
from rrg.errors import UserError

DATA = DataConfig("mimic_cxr", "/data")
CONFIG = Config(DATA, ModelConfig(), RolloutConfig(), RewardConfig(), LearnerConfig(), ClusterConfig())


def hash_with(**fields: Any) -> str:
    return config_hash(replace(CONFIG, data=replace(DATA, **fields)))


@pytest.mark.parametrize(
    "fields", [{"views": "frontal"}, {"without_findings": "impression"}, {"imagenome": "/graphs"}, {"limit_train": 9}]
)
def test_other_training_data_make_another_run(fields: dict[str, object]) -> None:
    assert hash_with(**fields) != config_hash(CONFIG)


@pytest.mark.parametrize("fields", [{"root": "/moved"}, {"reports": "/reports"}, {"cache_dir": "/c"}, {"workers": 9}])
def test_the_same_data_in_another_place_do_not(fields: dict[str, object]) -> None:
    assert hash_with(**fields) == config_hash(CONFIG)


def test_chest_imagenome_may_move_too() -> None:
    assert hash_with(imagenome="/graphs") == hash_with(imagenome="/elsewhere")


@pytest.mark.parametrize(
    "learner",
    [
        LearnerConfig(rl=RLConfig(advantage="rloo")),
        LearnerConfig(rl=RLConfig(lr=1e-9)),
        LearnerConfig(grad_clip=0.5),
        LearnerConfig(betas=(0.9, 0.999)),
    ],
)
def test_another_objective_makes_another_run(learner: LearnerConfig) -> None:
    assert config_hash(replace(CONFIG, learner=learner)) != config_hash(CONFIG)
    assert config_hash(replace(CONFIG, rollout=RolloutConfig(max_staleness=1))) != config_hash(CONFIG)


@pytest.mark.parametrize(
    "learner",
    [
        LearnerConfig(rl=RLConfig(steps=99, checkpoint_every=1, keep_checkpoints=9, keep_best=None)),
        LearnerConfig(rl=RLConfig(evaluate_every=0, evaluate_studies=7)),
        LearnerConfig(sft=SFTConfig(checkpoint_every=1)),
        LearnerConfig(micro_batch_tokens=1, num_ranks=2),
    ],
)
def test_a_run_may_be_made_longer_watched_more_and_moved(learner: LearnerConfig) -> None:
    assert config_hash(replace(CONFIG, learner=learner)) == config_hash(CONFIG)


def state(step: int, best: Best | None = None) -> RunState:
    return RunState("rl", step, step, 1, "hash", kl_coef=0.02, best=best)


def fill(folder: Path) -> None:
    (folder / "deepspeed").mkdir()
    (folder / "policy").mkdir()


def steps_in(folder: Path) -> list[int]:
    return sorted(read_state(path).step for path in folder.glob("step_*"))


def test_the_newest_complete_checkpoint_is_found_and_older_ones_pruned(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, state(step), fill, keep=2)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert read_state(newest) == state(6)
    assert steps_in(tmp_path) == [4, 6]


def test_the_best_checkpoint_stays_whatever_its_age_until_there_is_a_better_one(tmp_path: Path) -> None:
    first, second = Best("reward", -1.0, 2), Best("reward", -0.5, 10)
    for step, best in ((2, first), (4, first), (6, first), (8, first)):
        write_checkpoint(tmp_path, state(step, best), fill, keep=2)
    assert steps_in(tmp_path) == [2, 6, 8]
    assert (tmp_path / "best").read_text() == "step_1_000002\n"
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert read_state(newest).best == first
    write_checkpoint(tmp_path, state(10, second), fill, keep=2)
    assert steps_in(tmp_path) == [8, 10]
    assert (tmp_path / "best").read_text() == "step_1_000010\n"


def test_a_warm_start_is_older_than_any_step_of_rl(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, RunState("policy", 900, 0, 1, "hash", kl_coef=0.02), fill, keep=2)
    (tmp_path / "latest").unlink()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_0_000900"
    write_checkpoint(tmp_path, state(1), fill, keep=2)
    (tmp_path / "latest").unlink()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_1_000001"


def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path, state(2), fill, keep=1)

    def crash(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    for step in (4, 2):
        with pytest.raises(UserError, match=rf"disk full.*make room, then go on with resume={tmp_path.parent}"):
            write_checkpoint(tmp_path, state(step), crash, keep=1)
        assert latest_checkpoint(tmp_path) == first


def test_a_step_can_be_written_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(2), fill, keep=1)
    path = write_checkpoint(tmp_path, state(2, Best("reward", 0.0, 2)), fill, keep=1)
    assert read_state(path).best == Best("reward", 0.0, 2)
    assert {entry.name for entry in tmp_path.iterdir()} == {"step_1_000002", "latest", "best"}


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path, state(2), fill, keep=3)
    second = write_checkpoint(tmp_path, state(4), fill, keep=3)
    for damaged in ("{", "{}", "[]"):
        (second / "state.json").write_text(damaged)
        assert latest_checkpoint(tmp_path) == first


def test_a_checkpoint_of_an_older_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, state(2), fill, keep=3)
    fields = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(fields | {"format": 1}))
    with pytest.raises(FormatError, match=r"format 1, this version reads 3: .*start="):
        latest_checkpoint(tmp_path)


def trajectory(study: str, index: int, tokens: int, failed: str | None = None) -> Trajectory:
    rng = np.random.default_rng(tokens)
    return Trajectory(
        study_id=study,
        sample_index=index,
        seed=2**62 + index,
        prompt_length=7,
        token_ids=rng.integers(0, 99, tokens, dtype=np.int32),
        logprobs=-rng.random(tokens, dtype=np.float32),
        versions=np.sort(rng.integers(0, 3, tokens, dtype=np.int32)),
        finish_reason="stop",
        text="no acute \u2265 disease",
        components={"bertscore": 0.1 + 0.2},
        reward=-1.0 / 3.0,
        failed=failed,
    )


@pytest.mark.parametrize(
    "batches",
    [
        {},
        {5: [trajectory("a", BASELINE, 4), trajectory("a", 0, 9)], 6: [trajectory("b", 0, 0, "reward: away")]},
    ],
)
def test_trajectories_come_back_from_a_checkpoint_to_the_bit(
    tmp_path: Path, batches: dict[int, list[Trajectory]]
) -> None:
    write_inflight(tmp_path, batches)
    back = read_inflight(tmp_path)
    assert back.keys() == batches.keys()
    for step, wanted in batches.items():
        for one, other in zip(back[step], wanted, strict=True):
            for name, value in vars(other).items():
                found = getattr(one, name)
                if isinstance(value, np.ndarray):
                    assert found.dtype == value.dtype
                    assert np.array_equal(found, value)
                else:
                    assert found == value


def test_an_incomplete_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "deepspeed").mkdir()
    with pytest.raises(UserError, match=r"state\.json, policy is missing"):
        read_state(tmp_path)
