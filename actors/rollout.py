"""Answering a `SampleRequest`: studies to prompts, prompts to samples, samples to rewarded trajectories.

Contract: `RolloutWorker.collect` gives one trajectory for every sample asked for, ordered by study, then sample, a
greedy baseline first. What goes wrong with a single study or with the reward fails the trajectories concerned (`failed`
has the reason); weights that are refused (`WeightsError`) and a broken engine (`EngineError`) raise.
A study is encoded alone and its samples have seeds of their own: its prompt does not depend on the request's other
studies. The reward of a study is asked for when its last sample is finished, while other studies still run. The
sentences of region evidence are written after the reports.

`collect` is `write`, then `settle`: the first works on the engine, the second waits for rewards, and may do so in
another thread while the next request is written. While a `live` request is written, `offer` may bring newer weights:
the samples that still run are interrupted between two tokens, their studies encoded anew, and they go on from their
tokens so far. Nothing computed with the old weights is used again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from actors.engine import RolloutEngine
from actors.errors import PromptError
from actors.evidence import Draft, draft_evidence, write_sentences
from actors.metrics import Outstanding, RolloutMetrics
from actors.nccl import NcclLoader
from actors.samples import Prompt, Sample, Sampling
from actors.scoring import Answers, Scorer, fail, take_scores
from actors.seeds import continuation_seed, sample_seed
from actors.trajectory import BASELINE, SampleRequest, Trajectory, WeightsRef
from actors.weights import WeightsReceiver
from configs.schema import Config
from reward_server.errors import RewardError
from rrg.data.studyset import StudySet
from rrg.errors import UserError
from rrg.model.backbone import make_store
from rrg.model.build import load_policy


@dataclass(frozen=True)
class _Encoded:
    """The prompt embeds [P, hidden] of a study, and the draft of its evidence where that was asked for."""

    embeds: npt.NDArray[np.float32]
    draft: Draft | None


@dataclass(eq=False)
class _Group:
    """One study of the request: its trajectories, and how many of them still run."""

    study_id: str
    reference: str
    trajectories: list[Trajectory]
    running: int
    encoded: _Encoded | None
    scores: Future[Answers] | None = None

    def scorable(self) -> list[Trajectory]:
        return [trajectory for trajectory in self.trajectories if trajectory.failed is None]


@dataclass
class Written:
    """A request whose reports are written, and whose rewards may still be under way."""

    started: float
    groups: list[_Group] = field(default_factory=list)
    sync_s: float = 0.0
    updates: int = 0
    ended: float = 0.0


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
            self.engine,
            self._policy,
            cfg.model.dtype,
            cfg.rollout.timeout_s,
            cfg.model.llm.broadcast,
            NcclLoader(self.engine, self._policy, cfg.rollout) if cfg.rollout.weights == "nccl" else None,
        )
        self._policy.to(device)  # only now: the receiver has dropped the LLM's layers, which the engine holds
        self.rewards = rewards
        self._offered: WeightsRef | None = None
        self._outstanding = Outstanding()

    @property
    def version(self) -> int | None:
        """The version of the weights in force."""
        return self._weights.version

    def update(self, weights: WeightsRef) -> None:
        """Serve these weights from now on, if they are not served already; raises WeightsError (`actors.weights`)."""
        self._weights.update(weights)

    def offer(self, weights: WeightsRef) -> None:
        """Let live requests use these weights if they are newer than theirs; from any thread, at once."""
        self._offered = weights

    def collect(self, request: SampleRequest) -> tuple[list[Trajectory], RolloutMetrics]:
        """The answer to a request, and what it cost."""
        return self.settle(self.write(request))

    def write(self, request: SampleRequest) -> Written:
        """Writes all reports of a request; their rewards are asked for on the way."""
        if request.score and self.rewards is None:
            raise RewardError("this rollout actor has no reward server: give it `rewards`, or ask score=False")
        written = Written(started=time.monotonic())
        self._sync(written, request)
        for study_id in request.study_ids:
            encoded = self._encode(study_id, request.evidence)
            written.groups.append(self._open(request, study_id, encoded))
        # At stage=regions the language model never learns to write reports: none are asked of it.
        if self._cfg.stage != "regions":
            self._run(request, written)
        self._add_evidence(written.groups)
        written.ended = time.monotonic()
        return written

    def settle(self, written: Written) -> tuple[list[Trajectory], RolloutMetrics]:
        """Waits for the rewards."""
        for group in written.groups:
            if group.scores is not None:
                take_scores(group.scorable(), group.scores, self._cfg.reward)
        trajectories = [trajectory for group in written.groups for trajectory in group.trajectories]
        ended = time.monotonic()
        busy_s = written.ended - written.started
        metrics = RolloutMetrics(
            sync_s=written.sync_s,
            rollout_s=busy_s - written.sync_s,
            busy_s=busy_s,
            reward_wait_s=ended - written.ended,
            reward_busy_s=self._outstanding.take(),
            started=written.started,
            written=written.ended,
            ended=ended,
            samples=len(trajectories),
            failed=sum(trajectory.failed is not None for trajectory in trajectories),
            tokens=sum(len(trajectory.token_ids) for trajectory in trajectories),
            updates=written.updates,
        )
        return trajectories, metrics

    def _run(self, request: SampleRequest, written: Written) -> None:
        """Runs all samples to their ends, over as many versions of the weights as are offered meanwhile."""
        rollout = self._cfg.rollout
        sampling = Sampling(rollout.max_new_tokens, self._policy.eos_token_id, rollout.temperature, request.greedy)
        left = [(group, t) for group in written.groups for t in group.scorable()]
        interrupted = self._is_outdated if request.live else None
        while True:
            running, left = left, []
            prompts = [self._prompt(group, trajectory) for group, trajectory in running]
            for sample in self.engine.generate(prompts, sampling, interrupted):
                group, trajectory = running[sample.index]
                self._extend(trajectory, sample)
                if sample.finish_reason == "interrupted":
                    left.append((group, trajectory))
                else:
                    self._end(group, request)
            if not left:
                return
            self._sync(written, request)
            written.updates += 1
            left = self._encode_anew(left, request)

    def _sync(self, written: Written, request: SampleRequest) -> None:
        """Serve the request's weights, or newer ones if it is live and there are any."""
        start = time.monotonic()
        offered, weights = self._offered, request.weights
        newer = request.live and offered is not None and offered.version > weights.version
        self.update(offered if newer and offered is not None else weights)
        written.sync_s += time.monotonic() - start

    def _is_outdated(self) -> bool:
        assert self.version is not None
        return self._offered is not None and self._offered.version > self.version

    def _encode(self, study_id: str, evidence: bool) -> _Encoded | str:
        """The prompt of a study, and the draft of its evidence; or why there are none."""
        study = self._studies[study_id]
        try:
            embeds, seen = self._policy.study_prompt(study, self._store)
            self.engine.check_prompt(embeds, self._cfg.rollout.max_new_tokens)
        except (UserError, OSError, PromptError) as error:
            return f"prompt: {error}"
        return _Encoded(embeds, draft_evidence(self._policy, study, seen) if evidence else None)

    def _encode_anew(
        self, left: Sequence[tuple[_Group, Trajectory]], request: SampleRequest
    ) -> list[tuple[_Group, Trajectory]]:
        """With the weights now in force; gives those that can go on."""
        for group in dict.fromkeys(group for group, _ in left):
            encoded = self._encode(group.study_id, request.evidence)
            if isinstance(encoded, _Encoded):
                group.encoded = encoded
                continue
            for trajectory in [trajectory for of, trajectory in left if of is group]:
                fail([trajectory], encoded)
                self._end(group, request)
        return [(group, trajectory) for group, trajectory in left if trajectory.failed is None]

    def _open(self, request: SampleRequest, study_id: str, encoded: _Encoded | str) -> _Group:
        first = BASELINE if request.greedy_baseline else 0
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
                failed=encoded if isinstance(encoded, str) else None,
            )
            for index in range(first, request.samples_per_study)
        ]
        found = None if isinstance(encoded, str) else encoded
        return _Group(study_id, self._studies[study_id].target, trajectories, len(trajectories), found)

    def _prompt(self, group: _Group, trajectory: Trajectory) -> Prompt:
        """What to go on from: the study's prompt, and the sample's tokens so far."""
        assert group.encoded is not None
        embeds, tokens = group.encoded.embeds, trajectory.token_ids
        seed = None if trajectory.baseline else continuation_seed(trajectory.seed, tokens)
        if not len(tokens):
            return Prompt(embeds, seed)
        ids = torch.as_tensor(tokens, dtype=torch.long, device=self._policy.device)
        with torch.no_grad():
            read = self._policy.llm.get_input_embeddings()(ids).float().cpu().numpy()
        return Prompt(np.concatenate([embeds, read]), seed, written=len(tokens))

    def _extend(self, trajectory: Trajectory, sample: Sample) -> None:
        """Adds the tokens that the weights in force gave; a failed sample has none."""
        trajectory.failed = sample.failed
        if sample.failed is not None:
            trajectory.token_ids, trajectory.versions = np.zeros(0, np.int32), np.zeros(0, np.int32)
            trajectory.logprobs = np.zeros(0, np.float32)
            return
        versions = np.full(len(sample.token_ids), self.version, np.int32)
        trajectory.token_ids = np.concatenate([trajectory.token_ids, sample.token_ids])
        trajectory.logprobs = np.concatenate([trajectory.logprobs, sample.logprobs])
        trajectory.versions = np.concatenate([trajectory.versions, versions])
        if sample.finish_reason != "interrupted":
            trajectory.finish_reason = sample.finish_reason
            trajectory.text = self._policy.decode(trajectory.token_ids.tolist())

    def _end(self, group: _Group, request: SampleRequest) -> None:
        """One sample of the group has ended; after the last one its rewards are asked for."""
        group.running -= 1
        pairs = [(group.reference, trajectory.text) for trajectory in group.scorable()]
        if group.running or not request.score or not pairs:
            return
        assert self.rewards is not None
        group.scores = self.rewards.submit_each(pairs)
        self._outstanding.watch(group.scores)

    def _add_evidence(self, groups: Iterable[_Group]) -> None:
        drafted: list[tuple[_Group, Draft]] = []
        for group in groups:
            if group.encoded is not None and group.encoded.draft is not None:
                drafted.append((group, group.encoded.draft))
        written = write_sentences(self._policy, self.engine, [draft for _, draft in drafted])
        for (group, _), evidence in zip(drafted, written, strict=True):
            for trajectory in group.trajectories:
                trajectory.evidence = evidence
