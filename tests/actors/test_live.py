"""Weights that are offered while reports are written: the rest is written with them, as if it had begun with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from actors.metrics import RolloutMetrics
from actors.rollout import RolloutWorker
from actors.trajectory import SampleRequest, Trajectory, WeightsRef
from configs.schema import Config
from rrg.data import StudySet
from rrg.model.backbone import make_store
from rrg.model.policy import ReportPolicy
from tests.actors.conftest import WordScorer, make_request, published, same


class Offering:
    """The driver offers weights while the reports have so many tokens: a worker asks before every one."""

    def __init__(self, worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch) -> None:
        self._worker = worker
        self._asks = worker._is_outdated
        self._offers: dict[int, Callable[[], None]] = {}
        self._asked = 0
        monkeypatch.setattr(worker, "_is_outdated", self._ask)

    def _ask(self) -> bool:
        self._offers.get(self._asked, lambda: None)()
        self._asked += 1
        return self._asks()

    def collect(
        self, asked: SampleRequest, offers: dict[int, Callable[[], None]]
    ) -> tuple[list[Trajectory], RolloutMetrics]:
        self._worker.offer(asked.weights)  # in place of what was offered before
        self._worker.update(asked.weights)
        self._asked, self._offers = 0, offers
        return self._worker.collect(asked)


@pytest.fixture
def offering(worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch) -> Offering:
    return Offering(worker, monkeypatch)


def learners_logprobs(policy: ReportPolicy, t: Trajectory, studies: StudySet, run_config: Config) -> np.ndarray:
    store = make_store(run_config.data, run_config.model)
    ids = torch.as_tensor(t.token_ids, dtype=torch.long)[None]
    with torch.no_grad():
        out = policy(policy.inputs([studies[t.study_id]], store), ids, torch.ones_like(ids, dtype=torch.bool))
    assert out.logprobs is not None
    return out.logprobs[0].numpy()


def test_offered_weights_write_the_rest_of_the_reports_that_a_live_request_has_begun(
    worker: RolloutWorker,
    offering: Offering,
    studies: StudySet,
    weights: WeightsRef,
    policy: ReportPolicy,
    other_policy: ReportPolicy,
    run_config: Config,
) -> None:
    live = dataclasses.replace(make_request(studies, weights, score=False), live=True, greedy_baseline=True)
    offers = {
        6: lambda: worker.offer(published(other_policy, 3)),
        11: lambda: worker.offer(published(policy, 4)),
    }
    first, metrics = offering.collect(live, offers)
    assert (metrics.updates, metrics.failed, worker.version) == (2, 0, 4)
    assert any(set(t.versions) == {0, 3, 4} for t in first)
    for t in first:
        assert (np.diff(t.versions) >= 0).all()
        assert len(t.token_ids) == len(t.logprobs) == len(t.versions) <= run_config.rollout.max_new_tokens
        assert t.text == policy.decode(t.token_ids.tolist())
        for version, of in ((0, policy), (3, other_policy), (4, policy)):
            theirs = t.versions == version
            if not t.baseline and theirs.any():
                expected = learners_logprobs(of, t, studies, run_config)
                np.testing.assert_allclose(t.logprobs[theirs], expected[theirs], atol=1e-4)
    again, _ = offering.collect(live, offers)
    assert all(same(a, b) and (a.versions == b.versions).all() for a, b in zip(first, again, strict=True))


def test_only_newer_weights_and_only_live_requests_are_interrupted(
    worker: RolloutWorker, offering: Offering, studies: StudySet, other_policy: ReportPolicy, policy: ReportPolicy
) -> None:
    asked = make_request(studies, published(policy, 5), score=False)
    plain, _ = offering.collect(asked, {})
    for version in (5, 4):
        answer, metrics = offering.collect(
            dataclasses.replace(asked, live=True), {6: lambda v=version: worker.offer(published(other_policy, v))}
        )
        assert (metrics.updates, worker.version) == (0, 5)
        assert all(same(a, b) for a, b in zip(plain, answer, strict=True))
    worker.offer(published(other_policy, 6))
    answer, metrics = worker.collect(asked)
    assert (metrics.updates, worker.version) == (0, 5)
    assert all(same(a, b) for a, b in zip(plain, answer, strict=True))


def test_a_live_request_begins_with_the_newest_weights(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef, other_policy: ReportPolicy
) -> None:
    worker.offer(published(other_policy, 8))
    asked = dataclasses.replace(make_request(studies, weights, score=False), live=True)
    trajectories, metrics = worker.collect(asked)
    assert {version for t in trajectories for version in t.versions} == {8}
    assert metrics.updates == 0


def test_a_study_that_cannot_be_encoded_anew_fails_alone(
    worker: RolloutWorker,
    offering: Offering,
    studies: StudySet,
    weights: WeightsRef,
    other_policy: ReportPolicy,
    scorer: WordScorer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker.rewards = scorer
    lost = next(iter(studies))
    missing = dataclasses.replace(lost.images[0], path=lost.images[0].path.with_name("lost.png"))

    def offer_and_lose() -> None:
        monkeypatch.setitem(studies.studies, lost.id, dataclasses.replace(lost, images=(missing,)))
        worker.offer(published(other_policy, 3))

    live = dataclasses.replace(make_request(studies, weights), live=True)
    trajectories, metrics = offering.collect(live, {6: offer_and_lose})
    assert 0 < metrics.failed <= 4
    for t in trajectories:
        assert t.failed is None or (t.study_id == lost.id and "lost.png" in t.failed)
    assert len(scorer.asked) == (3 if metrics.failed < 4 else 2)
