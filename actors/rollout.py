"""Answering a `SampleRequest`: studies to prompts, prompts to samples, samples to rewarded trajectories.

Contract: `RolloutWorker.collect` gives one trajectory for every sample asked for, ordered by study, then sample.
What goes wrong with a single study or with the reward fails the trajectories concerned (`failed` has the reason);
weights that are refused (`WeightsError`) and a broken engine (`EngineError`) raise.
A study is encoded alone and its samples have seeds of their own: its prompt does not depend on the request's other
studies. The reward of a study is asked for when its last sample is finished, while other studies still run. The
sentences of region evidence are written after the reports.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from actors.engine import Prompt, RolloutEngine, Sample, Sampling
from actors.errors import PromptError
from actors.evidence import Draft, draft_evidence, write_sentences
from actors.seeds import sample_seed
from actors.trajectory import SampleRequest, Trajectory, WeightsRef
from actors.weights import WeightsReceiver
from configs.schema import Config
from reward_server.errors import PairError, RewardError
from reward_server.spec import reward_from_components
from rrg.data.studyset import StudySet
from rrg.errors import UserError
from rrg.model.backbone import make_store
from rrg.model.build import load_policy

# The reward client keeps its own deadline; a future that is not done so much later (s) is given up.
REWARD_GRACE_S = 5.0

Answers = list[dict[str, float] | PairError]


class Scorer(Protocol):
    """The part of `reward_server.client.RewardClient` that is used here."""

    def submit_each(self, pairs: list[tuple[str, str]]) -> Future[Answers]:
        """Components of every (reference, hypothesis) pair or why it has none, in order; the future raises RewardError
        where no server can be had."""
        ...


@dataclass(frozen=True)
class RolloutMetrics:
    """What one request cost: seconds of weight sync, generation and waiting for rewards after it; counts."""

    sync_s: float
    rollout_s: float
    reward_wait_s: float
    samples: int
    failed: int
    tokens: int


@dataclass(frozen=True)
class _Encoded:
    """The prompt embeds [P, hidden] of a study, and the draft of its evidence where that was asked for."""

    embeds: npt.NDArray[np.float32]
    draft: Draft | None


@dataclass
class _Group:
    """One study of the request: its trajectories by sample index, and how many samples still run."""

    reference: str
    trajectories: list[Trajectory]
    running: int
    draft: Draft | None
    scores: Future[Answers] | None = None

    def scorable(self) -> list[Trajectory]:
        return [trajectory for trajectory in self.trajectories if trajectory.failed is None]


class RolloutWorker:
    """A policy on a vLLM engine, with the studies and the way to the reward server."""

    def __init__(self, cfg: Config, policy_dir: Path, studies: StudySet, rewards: Scorer | None) -> None:
        """Builds the engine (seconds). `policy_dir` is a `save_policy` folder; its weights are not served: the first
        request brings the first version."""
        self._cfg = cfg
        self._studies = studies
        self._store = make_store(cfg.data, cfg.model)
        device = "cuda" if cfg.rollout.gpus_per_actor > 0 else "cpu"
        self._policy = load_policy(policy_dir)
        self.engine = RolloutEngine(policy_dir / "llm", cfg.rollout, cfg.model.dtype)
        self._weights = WeightsReceiver(
            self.engine, self._policy, cfg.model.dtype, cfg.rollout.timeout_s, cfg.model.llm.broadcast
        )
        self._policy.to(device)  # only now: the receiver has dropped the LLM's layers, which the engine holds
        self.rewards = rewards

    @property
    def version(self) -> int | None:
        """The version of the weights in force."""
        return self._weights.version

    def update(self, weights: WeightsRef) -> None:
        """Serve these weights from now on, if they are not served already; raises WeightsError (`actors.weights`)."""
        self._weights.update(weights)

    def collect(self, request: SampleRequest) -> tuple[list[Trajectory], RolloutMetrics]:
        """The answer to a request, and what it cost."""
        if request.score and self.rewards is None:
            raise RewardError("this rollout actor has no reward server: give it `rewards`, or ask score=False")
        start = time.monotonic()
        self.update(request.weights)
        synced = time.monotonic()
        groups = self._generate(request)
        generated = time.monotonic()
        for group in groups:
            self._reward(group)
        trajectories = [trajectory for group in groups for trajectory in group.trajectories]
        metrics = RolloutMetrics(
            sync_s=synced - start,
            rollout_s=generated - synced,
            reward_wait_s=time.monotonic() - generated,
            samples=len(trajectories),
            failed=sum(trajectory.failed is not None for trajectory in trajectories),
            tokens=sum(len(trajectory.token_ids) for trajectory in trajectories),
        )
        return trajectories, metrics

    def _generate(self, request: SampleRequest) -> list[_Group]:
        rollout = self._cfg.rollout
        sampling = Sampling(rollout.max_new_tokens, self._policy.eos_token_id, rollout.temperature, request.greedy)
        groups: list[_Group] = []
        prompts: list[Prompt] = []
        places: list[tuple[_Group, int]] = []  # of each prompt's sample
        for study_id in request.study_ids:
            encoded = self._encode(study_id, sampling.max_new_tokens, request.evidence)
            group = self._open(request, study_id, encoded)
            groups.append(group)
            # At stage=regions the language model never learns to write reports: none are asked of it.
            if isinstance(encoded, _Encoded) and self._cfg.stage != "regions":
                prompts += [Prompt(encoded.embeds, trajectory.seed) for trajectory in group.trajectories]
                places += [(group, index) for index in range(len(group.trajectories))]
        for sample in self.engine.generate(prompts, sampling):
            group, index = places[sample.index]
            self._fill(group.trajectories[index], sample, request.weights.version)
            group.running -= 1
            if not group.running and request.score:
                self._submit(group)
        self._add_evidence([group for group in groups if group.draft is not None])
        return groups

    def _encode(self, study_id: str, max_new_tokens: int, evidence: bool) -> _Encoded | str:
        """The prompt of a study, and the draft of its evidence; or why there are none."""
        study = self._studies[study_id]
        try:
            embeds, seen = self._policy.study_prompt(study, self._store)
            self.engine.check_prompt(embeds, max_new_tokens)
        except (UserError, OSError, PromptError) as error:
            return f"prompt: {error}"
        return _Encoded(embeds, draft_evidence(self._policy, study, seen) if evidence else None)

    def _add_evidence(self, groups: Sequence[_Group]) -> None:
        drafts = [group.draft for group in groups if group.draft is not None]
        for group, evidence in zip(groups, write_sentences(self._policy, self.engine, drafts), strict=True):
            for trajectory in group.trajectories:
                trajectory.evidence = evidence

    def _open(self, request: SampleRequest, study_id: str, encoded: _Encoded | str) -> _Group:
        failed = encoded if isinstance(encoded, str) else None
        draft = None if isinstance(encoded, str) else encoded.draft
        trajectories = [
            Trajectory(
                study_id=study_id,
                sample_index=index,
                seed=sample_seed(request.seed, request.step, study_id, index),
                prompt_length=0 if isinstance(encoded, str) else len(encoded.embeds),
                token_ids=np.zeros(0, np.int32),
                logprobs=np.zeros(0, np.float32),
                versions=np.zeros(0, np.int32),
                finish_reason="length",
                text="",
                failed=failed,
            )
            for index in range(request.samples_per_study)
        ]
        return _Group(self._studies[study_id].target, trajectories, len(trajectories), draft)

    def _fill(self, trajectory: Trajectory, sample: Sample, version: int) -> None:
        trajectory.failed = sample.failed
        if sample.failed is None:
            trajectory.token_ids = sample.token_ids
            trajectory.logprobs = sample.logprobs
            trajectory.versions = np.full(len(sample.token_ids), version, np.int32)
            trajectory.finish_reason = sample.finish_reason
            trajectory.text = self._policy.decode(sample.token_ids.tolist())

    def _submit(self, group: _Group) -> None:
        assert self.rewards is not None
        pairs = [(group.reference, trajectory.text) for trajectory in group.scorable()]
        if pairs:
            group.scores = self.rewards.submit_each(pairs)

    def _reward(self, group: _Group) -> None:
        """Wait for the scores of a group; what is missing or not finite fails its trajectories."""
        if group.scores is None:
            return
        trajectories = group.scorable()
        timeout_s = self._cfg.reward.timeout_s + REWARD_GRACE_S
        try:
            scores = group.scores.result(timeout=timeout_s)
        except FutureTimeoutError:
            return _fail(trajectories, f"reward: no answer within {timeout_s:g} s")
        except RewardError as error:
            return _fail(trajectories, f"reward: {error}")
        for trajectory, answer in zip(trajectories, scores, strict=True):
            try:
                if isinstance(answer, PairError):
                    raise answer
                set_reward(trajectory, answer, partial(reward_from_components, cfg=self._cfg.reward))
            except RewardError as error:
                _fail([trajectory], f"reward: {error}")


class RewardOf(Protocol):
    """The training reward of a pair's components; raises RewardError."""

    def __call__(self, components: Mapping[str, float]) -> float: ...


def set_reward(trajectory: Trajectory, components: Mapping[str, float], reward_of: RewardOf) -> None:
    """Give a trajectory its components and reward; raises RewardError where one is not finite."""
    reward = reward_of(components)
    if not all(math.isfinite(value) for value in (reward, *components.values())):
        raise RewardError("a component is not finite")
    trajectory.components, trajectory.reward = dict(components), reward


def _fail(trajectories: Sequence[Trajectory], reason: str) -> None:
    for trajectory in trajectories:
        trajectory.failed = reason
