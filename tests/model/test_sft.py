"""The warm start: what it sees when, and its losses."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from configs.schema import LLMConfig, ModelConfig, SFTConfig
from learner.sft import attention_loss, extractor_loss, findings_loss, report_loss, sft_loss, stage_parameters
from learner.sft_data import SFTBatch, findings_first, region_targets, sft_lr, sft_schedule
from rrg.data.findings import FINDINGS
from rrg.data.regions import REGIONS
from rrg.data.study import Box, Image, Report, Study
from rrg.errors import UserError
from rrg.model.build import build_policy
from rrg.model.extractor import RegionOutput
from rrg.model.features import FeatureBatch
from rrg.model.policy import ReportPolicy

GRID = 14


def make_study(number: int, abnormal: bool) -> Study:
    findings = frozenset({"effusion"} if abnormal else ())
    return Study(
        id=f"s{number}",
        split="train",
        images=(Image(f"{number}.png", "frontal"),),  # type: ignore[arg-type]  # never opened
        report=Report(findings="the heart is normal . " * (1 + number % 5) + "small left effusion ." * abnormal),
        source="test",
        findings=findings,
        region_findings={"left costophrenic angle": findings},
        boxes={"left costophrenic angle": Box(0.75, 0.75, 1.0, 1.0)},
    )


STUDIES = [make_study(number, abnormal=number % 4 == 0) for number in range(40)]
CFG = SFTConfig(extractor_epochs=1, epochs=2, batch_size=8, abnormal_fraction=0.5, warmup_steps=2)


def random_output(studies: int) -> RegionOutput:
    regions, findings, patches = len(REGIONS), len(FINDINGS), GRID**2
    return RegionOutput(
        significance=torch.randn(studies, regions),
        findings=torch.randn(studies, regions, findings),
        study_findings=torch.randn(studies, findings),
        base=torch.randn(studies, regions, 8),
        content=torch.randn(studies, regions, 8),
        global_tokens=torch.randn(studies, 2, 8),
        attention=torch.randn(studies, regions, patches).softmax(-1),
    )


def test_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    whole = list(sft_schedule(CFG, STUDIES, seed=3))
    again = sft_schedule(CFG, STUDIES, seed=3)
    assert [again[index] for index in reversed(range(len(again)))] == whole[::-1]
    assert [step.study_ids for step in sft_schedule(CFG, STUDIES, seed=4)] != [step.study_ids for step in whole]


def test_the_extractor_comes_first_and_each_stage_starts_once() -> None:
    steps = list(sft_schedule(CFG, STUDIES, seed=0))
    assert [step.stage for step in steps] == ["extractor"] * 5 + ["policy"] * 10
    assert [step.index for step in steps if step.first_of_stage] == [0, 5]


def test_abnormal_studies_have_their_share_in_the_end() -> None:
    drawn = [study for step in sft_schedule(CFG, STUDIES, seed=0) for study in step.study_ids]
    abnormal = {study.id for study in STUDIES if study.abnormal}
    share = sum(study in abnormal for study in drawn) / len(drawn)
    assert share == pytest.approx(0.5, abs=0.1)
    assert set(drawn) == {study.id for study in STUDIES}


def test_no_study_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="at least one training study"):
        sft_schedule(CFG, [], seed=0)


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [sft_lr(step, 100, 1e-3, 10) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 1e-6


def test_stated_findings_come_first_and_nothing_is_lost() -> None:
    stated, others = findings_first("the heart is normal . small left pleural effusion . no pneumothorax .")
    assert stated == "small left pleural effusion ."
    assert others == "the heart is normal . no pneumothorax ."


def test_targets_follow_labels_and_boxes() -> None:
    targets = region_targets(STUDIES[:2], REGIONS, FINDINGS, GRID, GRID**2)
    row, column = REGIONS.index("left costophrenic angle"), FINDINGS.index("effusion")
    assert targets.findings.nonzero().tolist() == [[0, row, column]]
    assert targets.study_findings.nonzero().tolist() == [[0, column]]
    assert targets.significance.nonzero().tolist() == [[0, row]]
    inside = targets.inside[1, row].unflatten(0, (GRID, GRID))
    assert inside[11:, 11:].all()
    assert not inside[:10].any()
    assert targets.inside[:, torch.arange(len(REGIONS)) != row].sum() == 0


def test_studies_without_labels_or_boxes_cost_nothing() -> None:
    unknown = dataclasses.replace(STUDIES[0], findings=None, region_findings=None, boxes=None)
    targets = region_targets([unknown], REGIONS, FINDINGS, GRID, GRID**2)
    assert extractor_loss(random_output(1), targets, CFG)[0] == 0


def test_only_labelled_studies_count_in_the_findings_loss() -> None:
    unknown = dataclasses.replace(STUDIES[0], findings=None)
    output = random_output(2)
    first = RegionOutput(**{name: value[:1] for name, value in vars(output).items()})
    both = region_targets([STUDIES[0], unknown], REGIONS, FINDINGS, GRID, GRID**2)
    alone = region_targets([STUDIES[0]], REGIONS, FINDINGS, GRID, GRID**2)
    assert findings_loss(output, both) == pytest.approx(float(findings_loss(first, alone)), rel=1e-5)


def test_attention_inside_the_box_costs_nothing_wherever_it_looks() -> None:
    targets = region_targets(STUDIES[:1], REGIONS, FINDINGS, GRID, GRID**2)
    row = REGIONS.index("left costophrenic angle")
    output = random_output(1)
    output.attention.zero_()[0, row, GRID**2 - 1] = 1.0
    assert attention_loss(output, targets) == 0
    output.attention.zero_()[0, row, 0] = 1.0
    assert attention_loss(output, targets) > 5


def test_the_report_loss_is_a_weighted_mean_over_tokens() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]])
    weights = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert report_loss(logprobs, weights) == pytest.approx((2 + 2 + 3 + 4) / 5)


@pytest.fixture(scope="module")
def policy() -> ReportPolicy:
    llm = LLMConfig(hidden_size=64, num_layers=1, num_heads=2, intermediate_size=64, vocab_size=300)
    cfg = ModelConfig(llm=llm, extractor_size=32, extractor_heads=2)
    return build_policy(cfg, [study.target for study in STUDIES], 0, image_size=16 * GRID)


def make_batch(policy: ReportPolicy) -> SFTBatch:
    studies = STUDIES[:4]
    torch.manual_seed(0)
    values = torch.randn(4, GRID**2, policy.extractor.shape.patch_channels)
    views = torch.zeros(4, GRID**2, dtype=torch.long)
    ids, mask = policy.tokenize([study.target for study in studies], 32)
    targets = region_targets(studies, REGIONS, FINDINGS, GRID, GRID**2)
    return SFTBatch(FeatureBatch(values, views, views == 0), ids, mask, torch.zeros_like(mask), targets)


def test_each_stage_trains_its_own_parameters(policy: ReportPolicy) -> None:
    policy.zero_grad()
    sft_loss(policy, make_batch(policy), "extractor", CFG)[0].backward()
    assert all(parameter.grad is None for parameter in policy.llm.parameters())
    policy.zero_grad()
    sft_loss(policy, make_batch(policy), "policy", CFG)[0].backward()
    assert all(parameter.grad is not None for parameter in stage_parameters(policy, "policy"))


def test_the_report_loss_reaches_the_findings_head_through_the_prompt(policy: ReportPolicy) -> None:
    policy.zero_grad()
    batch = make_batch(policy)
    output = policy(batch.features, batch.ids, batch.mask)
    assert output.logprobs is not None
    report_loss(output.logprobs, batch.mask.float()).backward()
    for head in (policy.extractor.region_findings, policy.extractor.significance, policy.extractor.study_findings):
        assert head.weight.grad is not None
        assert head.weight.grad.abs().sum() > 0


def test_a_few_steps_learn_a_batch_by_heart(policy: ReportPolicy) -> None:
    batch = make_batch(policy)
    optimizer = torch.optim.AdamW(stage_parameters(policy, "policy"), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, _ = sft_loss(policy, batch, "policy", CFG)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
