"""Requests are answered whole, in order, repeatably; failures are marked, never scored as zero."""

from __future__ import annotations

import copy
import dataclasses
import time

import numpy as np
import pytest
import torch

from actors.evidence import SENTENCE_TOKENS
from actors.rollout import RolloutWorker
from actors.seeds import continuation_seed, sample_seed
from actors.trajectory import BASELINE, WeightsRef
from configs.schema import Config
from reward_server.errors import RewardError
from rrg.data import StudySet
from rrg.model.backbone import make_store
from rrg.model.evidence import MAX_SENTENCES, SIGNIFICANT
from rrg.model.policy import ReportPolicy
from tests.actors.conftest import WordScorer, make_request, published, same


def test_trajectories_are_complete_and_ordered_by_study_then_sample(
    worker: RolloutWorker,
    studies: StudySet,
    weights: WeightsRef,
    scorer: WordScorer,
    policy: ReportPolicy,
    run_config: Config,
) -> None:
    worker.rewards = scorer
    trajectories, metrics = worker.collect(make_request(studies, weights))
    ids = list(studies.studies)
    assert [(t.study_id, t.sample_index) for t in trajectories] == [(i, k) for i in ids for k in range(4)]
    for t in trajectories:
        assert t.failed is None
        assert t.seed == sample_seed(5, 3, t.study_id, t.sample_index)
        assert t.prompt_length == len(policy.prompt_tokens(studies[t.study_id]))
        assert t.evidence is None
        assert len(t.token_ids) == len(t.logprobs) == len(t.versions) > 0
        assert np.isfinite(t.logprobs).all()
        assert set(t.versions) == {0}
        assert t.text == policy.decode(t.token_ids.tolist())
        assert t.reward == pytest.approx(-1.0 + run_config.reward.positive_f1_weight * len(t.text.split()))
    assert metrics.tokens == sum(len(t.token_ids) for t in trajectories)
    assert (metrics.samples, metrics.failed) == (12, 0)


def test_the_references_are_the_studies_own_reports(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef, scorer: WordScorer
) -> None:
    worker.rewards = scorer
    trajectories, _ = worker.collect(make_request(studies, weights))
    asked = sorted(pair for pairs in scorer.asked for pair in pairs)
    assert asked == sorted((studies[t.study_id].target, t.text) for t in trajectories)
    assert len(scorer.asked) == len(studies), "one request a study, sent when its samples are finished"


def test_behaviour_logprobs_are_the_learners(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef, policy: ReportPolicy, run_config: Config
) -> None:
    trajectories, _ = worker.collect(make_request(studies, weights, score=False))
    store = make_store(run_config.data, run_config.model)
    for t in trajectories:
        ids = torch.as_tensor(t.token_ids, dtype=torch.long)[None]
        with torch.no_grad():
            out = policy(policy.inputs([studies[t.study_id]], store), ids, torch.ones_like(ids, dtype=torch.bool))
        np.testing.assert_allclose(t.logprobs, out.logprobs[0].numpy(), atol=1e-4)


def test_a_studys_samples_do_not_depend_on_the_other_studies_of_the_request(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef
) -> None:
    together, _ = worker.collect(make_request(studies, weights, score=False))
    for study_id in studies.studies:
        alone, _ = worker.collect(
            dataclasses.replace(make_request(studies, weights, score=False), study_ids=(study_id,))
        )
        of_study = [t for t in together if t.study_id == study_id]
        assert [t.token_ids.tolist() for t in alone] == [t.token_ids.tolist() for t in of_study]


def test_the_same_request_gives_the_same_bits(worker: RolloutWorker, studies: StudySet, weights: WeightsRef) -> None:
    first, _ = worker.collect(make_request(studies, weights, score=False))
    worker.collect(dataclasses.replace(make_request(studies, weights, score=False), step=4))
    again, _ = worker.collect(make_request(studies, weights, score=False))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


def test_greedy_reports_do_not_depend_on_the_seed(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef
) -> None:
    greedy = dataclasses.replace(make_request(studies, weights, score=False, samples=1), greedy=True)
    first, _ = worker.collect(greedy)
    again, _ = worker.collect(dataclasses.replace(greedy, seed=99))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


def test_a_reward_outage_fails_the_trajectories_with_the_reason(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef, scorer: WordScorer
) -> None:
    worker.rewards = scorer
    scorer.error = RewardError("nobody answers at 127.0.0.1:1")
    trajectories, metrics = worker.collect(make_request(studies, weights))
    assert metrics.failed == len(trajectories) == 12
    assert all(t.failed == "reward: nobody answers at 127.0.0.1:1" and not t.components for t in trajectories)
    scorer.error = None
    assert worker.collect(make_request(studies, weights))[1].failed == 0


def test_a_pair_that_cannot_be_scored_fails_its_own_trajectory_alone(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef, scorer: WordScorer
) -> None:
    worker.rewards = scorer
    before, _ = worker.collect(make_request(studies, weights))
    scorer.refused = before[0].text
    trajectories, metrics = worker.collect(make_request(studies, weights))
    assert [t.failed for t in trajectories] == [
        "reward: hypothesis: too long" if t.text == scorer.refused else None for t in before
    ]
    assert 0 < metrics.failed < len(trajectories)


def test_a_reward_that_is_not_finite_fails_its_trajectory(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef, scorer: WordScorer
) -> None:
    worker.rewards = scorer
    scorer.value = float("nan")
    trajectories, _ = worker.collect(make_request(studies, weights))
    assert all(t.failed is not None and np.isfinite(t.reward) for t in trajectories)


def test_a_study_without_its_image_fails_alone(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef, scorer: WordScorer
) -> None:
    worker.rewards = scorer
    lost = next(iter(studies))
    missing = dataclasses.replace(lost.images[0], path=lost.images[0].path.with_name("lost.png"))
    studies.studies[lost.id] = dataclasses.replace(lost, images=(missing,))
    try:
        trajectories, metrics = worker.collect(make_request(studies, weights))
    finally:
        studies.studies[lost.id] = lost
    assert metrics.failed == 4
    for t in trajectories:
        assert (t.failed is not None) == (t.study_id == lost.id)
        assert t.failed is None or "lost.png" in t.failed


def test_a_prompt_that_leaves_no_room_for_the_report_fails_its_study_alone(
    worker: RolloutWorker,
    studies: StudySet,
    weights: WeightsRef,
    run_config: Config,
    policy: ReportPolicy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, *others = studies
    longer = dataclasses.replace(first.report, indication="pneumonia " * 60)
    monkeypatch.setitem(studies.studies, first.id, dataclasses.replace(first, report=longer))
    rollout = run_config.rollout
    room = rollout.max_model_len - max(len(policy.prompt_tokens(study)) for study in others)
    tight = dataclasses.replace(run_config, rollout=dataclasses.replace(rollout, max_new_tokens=room))
    monkeypatch.setattr(worker, "_cfg", tight)
    trajectories, metrics = worker.collect(make_request(studies, weights, score=False))
    assert metrics.failed == 4
    for t in trajectories:
        assert (t.failed is not None) == (t.study_id == first.id)
        assert t.failed is None or "do not fit rollout.max_model_len=128" in t.failed


@pytest.fixture(scope="module")
def seeing(policy: ReportPolicy) -> ReportPolicy:
    """The policy with a significance of about one half everywhere: some regions are significant, some are not."""
    changed = copy.deepcopy(policy)
    with torch.no_grad():
        changed.extractor.significance.bias.zero_()
        changed.extractor.region_findings.bias.zero_()
    return changed


@torch.no_grad()
def most_likely(policy: ReportPolicy, prompt: torch.Tensor, tokens: int) -> list[int]:
    """Greedy decoding after a prompt [P, hidden], by transformers."""
    ids: list[int] = []
    while len(ids) < tokens and policy.eos_token_id not in ids:
        read = policy.llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))
        logits = policy.llm(inputs_embeds=torch.cat([prompt, read])[None]).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids


def test_evidence_goes_with_greedy_reports_and_its_sentences_are_of_their_regions_token_alone(
    worker: RolloutWorker, studies: StudySet, seeing: ReportPolicy, run_config: Config
) -> None:
    store = make_store(run_config.data, run_config.model)
    asked = dataclasses.replace(
        make_request(studies, published(seeing, 7), False, samples=1), greedy=True, evidence=True
    )
    trajectories, _ = worker.collect(asked)
    for t in trajectories:
        assert t.failed is None
        assert t.evidence is not None
        assert tuple(one.region for one in t.evidence) == seeing.regions
        _, seen = seeing.study_prompt(studies[t.study_id], store)
        significance = seen.significance[0].sigmoid()
        np.testing.assert_allclose([one.significance for one in t.evidence], significance, atol=1e-5)
        written = [row for row, one in enumerate(t.evidence) if one.sentence is not None]
        assert len(written) == min(MAX_SENTENCES, int((significance >= SIGNIFICANT).sum())) > 0
        for row in written:
            prompt = seeing.caption_embeds(seen, torch.tensor([0]), torch.tensor([row]))[0]
            assert t.evidence[row].sentence == seeing.decode(most_likely(seeing, prompt, SENTENCE_TOKENS))
        for one in t.evidence:
            assert one.box is not None
            assert 0 <= one.box[0] < one.box[2] <= 1
            assert 0 <= one.box[1] < one.box[3] <= 1
            assert all(0.5 < probability <= 1 for probability in one.findings.values())
        assert any(one.findings for one in t.evidence)
    without, _ = worker.collect(dataclasses.replace(asked, evidence=False))
    assert all(t.evidence is None for t in without)
    assert all(same(a, b) for a, b in zip(trajectories, without, strict=True)), "evidence changes no report"


def test_a_study_whose_prompt_failed_has_no_evidence_and_one_without_a_frontal_image_no_boxes(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, lateral, _ = studies
    missing = dataclasses.replace(lost.images[0], path=lost.images[0].path.with_name("lost.png"))
    turned = dataclasses.replace(lateral.images[0], view="lateral")
    monkeypatch.setitem(studies.studies, lost.id, dataclasses.replace(lost, images=(missing,)))
    monkeypatch.setitem(studies.studies, lateral.id, dataclasses.replace(lateral, images=(turned,)))
    asked = dataclasses.replace(make_request(studies, weights, score=False, samples=1), greedy=True, evidence=True)
    first, second, third = worker.collect(asked)[0]
    assert first.evidence is None
    assert second.evidence is not None
    assert all(one.box is None for one in second.evidence)
    assert third.evidence is not None
    assert all(one.box is not None for one in third.evidence)


def test_a_run_of_the_regions_alone_has_evidence_and_no_reports(
    worker: RolloutWorker,
    studies: StudySet,
    weights: WeightsRef,
    run_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "_cfg", dataclasses.replace(run_config, stage="regions"))
    asked = dataclasses.replace(make_request(studies, weights, score=False, samples=1), greedy=True, evidence=True)
    for t in worker.collect(asked)[0]:
        assert (t.text, len(t.token_ids)) == ("", 0)
        assert t.evidence is not None
        assert len(t.evidence) == 29


def test_a_greedy_baseline_stands_before_a_studys_samples_and_changes_none_of_them(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef, scorer: WordScorer
) -> None:
    worker.rewards = scorer
    plain, _ = worker.collect(make_request(studies, weights))
    greedy, _ = worker.collect(dataclasses.replace(make_request(studies, weights, samples=1), greedy=True))
    scorer.asked.clear()
    both, metrics = worker.collect(dataclasses.replace(make_request(studies, weights), greedy_baseline=True))
    assert [t.sample_index for t in both] == [BASELINE, 0, 1, 2, 3] * 3
    baselines = [t for t in both if t.baseline]
    assert [t.study_id for t in baselines] == list(studies.studies)
    assert [t.token_ids.tolist() for t in baselines] == [t.token_ids.tolist() for t in greedy]
    assert [t.reward for t in baselines] == [t.reward for t in greedy]
    samples = [t for t in both if not t.baseline]
    assert [t.token_ids.tolist() for t in samples] == [t.token_ids.tolist() for t in plain]
    assert [t.seed for t in samples] == [t.seed for t in plain]
    assert [len(pairs) for pairs in scorer.asked] == [5, 5, 5]
    assert metrics.samples == 15


def test_the_next_request_is_written_while_rewards_are_awaited(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef, scorer: WordScorer
) -> None:
    worker.rewards = scorer
    scorer.go.clear()
    first = worker.write(make_request(studies, weights))
    second = worker.write(dataclasses.replace(make_request(studies, weights), step=4))
    time.sleep(0.2)
    scorer.go.set()
    (answer, before), (_, after) = worker.settle(first), worker.settle(second)
    assert [t.reward for t in answer] == [t.reward for t in worker.collect(make_request(studies, weights))[0]]
    assert before.written <= after.started
    assert before.busy_s == pytest.approx(before.written - before.started)
    assert before.reward_busy_s > 0.2 > after.reward_busy_s, "every second is counted once"
    assert before.ended - before.written == pytest.approx(before.reward_wait_s)


def test_scoring_without_a_reward_server_is_refused(
    worker: RolloutWorker, studies: StudySet, weights: WeightsRef
) -> None:
    with pytest.raises(RewardError, match="has no reward server"):
        worker.collect(make_request(studies, weights))


def test_seeds_are_stable_and_differ_by_every_part() -> None:
    assert sample_seed(0, 0, "study", 0) == 6835221706460998434
    seeds = {sample_seed(r, s, i, k) for r in range(3) for s in range(3) for i in ("1", "11") for k in range(12)}
    assert len(seeds) == 3 * 3 * 2 * 12
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seed_of_a_rest_depends_on_the_seed_and_the_tokens_so_far() -> None:
    tokens = np.array([5, 6, 7], np.int32)
    assert continuation_seed(3, tokens[:0]) == 3
    seeds = {continuation_seed(seed, tokens[:n]) for seed in (3, 4) for n in range(4)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert continuation_seed(3, tokens) == continuation_seed(3, tokens.astype(np.int64))
