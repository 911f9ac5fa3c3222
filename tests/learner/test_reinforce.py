"""The phase of RL around its steps: what is saved when, what stops it, and how it is gone on with.

Actors and ranks are left out on purpose: servers have to be away, and steps to go wrong, at chosen moments here.
`tests/job` has it all.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from configs.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    EvalConfig,
    LearnerConfig,
    ModelConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    StopConfig,
)
from learner.checkpoints import Best, RunState, latest_checkpoint, read_state, write_checkpoint
from learner.reinforce import OF_LAST_STEP, reinforce
from learner.run import Run
from learner.stopping import Signals
from learner.tracking import Tracker
from reward_server.errors import RewardError
from reward_server.scorer import Description
from rrg.data.studyset import StudySet
from rrg.errors import RunStoppedError
from rrg.progress import Show
from tests.evaluation.conftest import make_studies, token_f1_score

STUDIES = StudySet(make_studies(12, split="val"), [], {})
SOUND = {"reward_mean": 1.0, "reward_std": 0.5, "kl_k3": 0.1, "samples": 8.0, "failed": 0.0}


@dataclass
class Servers:
    """Reward servers that may be away."""

    away: bool = False

    def score(self, pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
        if self.away:
            raise RewardError("the servers are away")
        return token_f1_score(pairs)

    def describe(self) -> Description:
        return Description("embedded", "embedded-3", "formula", ("a",), (), {})


class Gone(Servers):
    """Servers that do not even say what they are while they are away."""

    def describe(self) -> Description:
        if self.away:
            raise RewardError("waited for the description of 127.0.0.1:9")
        return super().describe()


@dataclass
class Algorithm:
    """Steps whose metrics `step` tells; every study gets its own report."""

    folder: Path
    step: Callable[[int], dict[str, float]]
    rl_step: int = 0
    step_metrics: dict[str, float] = field(default_factory=dict)
    rollout_actors: str = "1 of 1 serve"

    def train(self) -> None:
        self.rl_step += 1
        self.step_metrics = self.step(self.rl_step)

    def generate(self, ids: Sequence[str]) -> list[Any]:
        return [SimpleNamespace(text=STUDIES[one].target) for one in ids]

    def save_run(self, folder: Path, best: Best | None = None) -> Path:
        state = RunState("rl", self.rl_step, self.rl_step, 1, "hash", kl_coef=0.0)
        return write_checkpoint(folder, state, _fill, keep=2)


def _fill(folder: Path) -> None:
    (folder / "deepspeed").mkdir()
    (folder / "policy").mkdir()


def config(**rl: Any) -> Config:
    settings = RLConfig(**{"steps": 4, "evaluate_every": 2, "checkpoint_every": 2, "keep_best": None, **rl})
    return Config(
        data=DataConfig("test"),
        model=ModelConfig(),
        rollout=RolloutConfig(),
        reward=RewardConfig(
            component_weights={"overlap": 1.0}, repetition_weight=0.0, length_weight=0.0, positive_f1_weight=0.0
        ),
        learner=LearnerConfig(rl=settings),
        cluster=ClusterConfig(),
        evaluation=EvalConfig(permutations=3, bootstrap=50),
    )


def go(cfg: Config, folder: Path, servers: Servers, step: Callable[[int], dict[str, float]]) -> str:
    """Begins, or goes on with, the run in `folder`; what it printed."""
    newest = latest_checkpoint(folder / "checkpoints")
    done = 0 if newest is None else read_state(newest).step
    algo, shown = Algorithm(folder, step, rl_step=done), io.StringIO()
    tracker = Tracker(folder, keep=("rl", done))
    try:
        console = Console(file=shown, width=200)
        reinforce(Run(cfg, folder, STUDIES, cast(Any, algo), cast(Any, servers), tracker, Show(console), Signals()))
    finally:
        tracker.close()
    return shown.getvalue()


def recorded(folder: Path, phase: str) -> list[int]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if row["phase"] == phase]


def saved(folder: Path) -> int:
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None
    return read_state(newest).step


def test_a_validation_without_scores_is_told_and_left_out_and_costs_the_run_nothing(tmp_path: Path) -> None:
    servers = Servers()

    def step(number: int) -> dict[str, float]:
        servers.away = number == 2
        return SOUND

    shown = go(config(), tmp_path, servers, step)
    assert "no validation after 2 RL steps: the servers are away" in shown
    assert recorded(tmp_path, "rl") == [1, 2, 3, 4]
    assert recorded(tmp_path, "validation") == [0, 4]


def test_a_step_is_saved_before_it_is_validated(tmp_path: Path) -> None:
    class Broken(Servers):
        def score(self, pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
            if self.away:
                raise MemoryError
            return super().score(pairs)

    servers = Broken()

    def step(number: int) -> dict[str, float]:
        servers.away = number == 2
        return SOUND

    with pytest.raises(MemoryError):
        go(config(), tmp_path, servers, step)
    assert saved(tmp_path) == 2


def test_a_stopped_run_stops_again_for_the_same_reason_until_its_limit_is_changed(tmp_path: Path) -> None:
    def step(number: int) -> dict[str, float]:
        return SOUND | {"kl_k3": 9.0 if number == 3 else 0.1}

    reasons = []
    for _ in range(2):
        with pytest.raises(RunStoppedError) as stopped:
            go(config(), tmp_path, Servers(), step)
        reasons.append(str(stopped.value))
        assert json.loads((tmp_path / "stopped.json").read_text())["step"] == 3
    assert reasons[0] == reasons[1]
    assert "kl_k3 is 9" in reasons[0]
    go(config(stop=StopConfig(max_kl=None)), tmp_path, Servers(), step)
    assert recorded(tmp_path, "rl") == [1, 2, 3, 4]
    assert not (tmp_path / "stopped.json").exists()


def test_an_outage_of_the_rewards_stops_the_run_saved_and_it_goes_on_when_they_are_back(tmp_path: Path) -> None:
    cfg = config(steps=9)
    with pytest.raises(RunStoppedError, match="reward servers"):
        go(cfg, tmp_path, Servers(), lambda number: SOUND if number < 3 else {"samples": 8.0, "failed": 8.0})
    assert saved(tmp_path) == 5
    go(cfg, tmp_path, Servers(), lambda number: SOUND)
    assert recorded(tmp_path, "rl") == list(range(1, 10))


def test_servers_that_stay_away_stop_the_run_and_the_step_without_scores_is_done_again(tmp_path: Path) -> None:
    servers, done = Gone(), []

    def step(number: int) -> dict[str, float]:
        servers.away = number == 3 and 3 not in done
        done.append(number)
        return SOUND | {"failed": 2.0 if servers.away else 0.0}

    cfg = config(evaluate_every=0)
    with pytest.raises(RunStoppedError, match=r"the reward servers are away: .*127\.0\.0\.1:9"):
        go(cfg, tmp_path, servers, step)
    assert saved(tmp_path) == 2
    servers.away = False
    go(cfg, tmp_path, servers, step)
    assert done == [1, 2, 3, 3, 4]
    assert recorded(tmp_path, "rl") == [1, 2, 3, 4]
    assert not (tmp_path / "stopped.json").exists()


def test_a_step_that_has_its_scores_is_saved_when_the_servers_go_away_behind_it(tmp_path: Path) -> None:
    servers = Gone()

    def step(number: int) -> dict[str, float]:
        servers.away = number == 3
        return SOUND

    with pytest.raises(RunStoppedError, match="away"):
        go(config(evaluate_every=0), tmp_path, servers, step)
    assert saved(tmp_path) == 3


def test_a_finished_run_that_is_made_longer_is_evaluated_anew_and_its_warm_start_is_not(tmp_path: Path) -> None:
    others = {"samples_sft.jsonl", "per_study_sft.csv"}
    go(config(), tmp_path, Servers(), lambda number: SOUND)
    for name in {*OF_LAST_STEP, *others}:
        (tmp_path / name).touch()
    go(config(), tmp_path, Servers(), lambda number: SOUND)
    assert all((tmp_path / name).exists() for name in OF_LAST_STEP)
    go(config(steps=6), tmp_path, Servers(), lambda number: SOUND)
    assert not any((tmp_path / name).exists() for name in OF_LAST_STEP)
    assert all((tmp_path / name).exists() for name in others)
    assert recorded(tmp_path, "rl") == [1, 2, 3, 4, 5, 6]
