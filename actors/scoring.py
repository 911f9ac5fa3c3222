"""From the reward server's answers to rewards.

Contract: a trajectory whose score fails, does not come in time or is not finite has `failed` set to the reason; it is
never given a reward of zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Protocol

from actors.trajectory import Trajectory
from configs.schema import RewardConfig
from reward_server.errors import PairError, RewardError
from reward_server.spec import reward_from_components

# The reward client keeps its own deadline; a future that is not done so much later (s) is given up.
REWARD_GRACE_S = 5.0

Answers = list[dict[str, float] | PairError]


class Scorer(Protocol):
    """The part of `reward_server.client.RewardClient` that is used here."""

    def submit_each(self, pairs: list[tuple[str, str]]) -> Future[Answers]:
        """Components of every (reference, hypothesis) pair or why it has none, in order; the future raises RewardError
        where no server can be had."""
        ...


def take_scores(trajectories: Sequence[Trajectory], scores: Future[Answers], cfg: RewardConfig) -> None:
    """Wait for the scores of these trajectories; what is missing or not finite fails them."""
    timeout_s = cfg.timeout_s + REWARD_GRACE_S
    try:
        answers = scores.result(timeout=timeout_s)
    except FutureTimeoutError:
        return fail(trajectories, f"reward: no answer within {timeout_s:g} s")
    except RewardError as error:
        return fail(trajectories, f"reward: {error}")
    for trajectory, answer in zip(trajectories, answers, strict=True):
        try:
            if isinstance(answer, PairError):
                raise answer
            _set_reward(trajectory, answer, cfg)
        except RewardError as error:
            fail([trajectory], f"reward: {error}")


def _set_reward(trajectory: Trajectory, components: Mapping[str, float], cfg: RewardConfig) -> None:
    reward = reward_from_components(components, cfg)
    if not all(math.isfinite(value) for value in (reward, *components.values())):
        raise RewardError("a component is not finite")
    trajectory.components, trajectory.reward = dict(components), reward


def fail(trajectories: Sequence[Trajectory], reason: str) -> None:
    for trajectory in trajectories:
        trajectory.failed = reason
