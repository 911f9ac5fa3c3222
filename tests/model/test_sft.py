"""The warm start: what it sees when, and its losses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from configs.schema import (
    BackboneConfig,
    Config,
    DataConfig,
    LearnerConfig,
    LLMConfig,
    LoRAConfig,
    ModelConfig,
    RolloutConfig,
    SFTConfig,
)
from learner.sft import (
    SFTTotals,
    attention_loss,
    extractor_losses,
    findings_loss,
    report_loss,
    sft_loss,
    sft_micro_batches,
    sft_totals,
    stage_parameters,
)
from learner.sft_data import SFTBatch, SFTStep, Stage, region_targets, sft_lr, sft_schedule
from learner.sft_texts import choose_captions, findings_first, region_texts, study_text
from rrg.data.findings import FINDINGS
from rrg.data.regions import REGIONS
from rrg.data.study import Box, Image, Report, Study
from rrg.errors import UserError
from rrg.model.boxes import attention_boxes
from rrg.model.build import build_policy
from rrg.model.extractor import RegionOutput
from rrg.model.features import FeatureBatch, PatchFeatures, PixelBatch, collate_features
from rrg.model.policy import ReportPolicy
from tests.model.test_vision import TINY, save_model

GRID, CHANNELS = 4, 24


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
CFG = SFTConfig(regions_epochs=1, epochs=2, batch_size=8, abnormal_fraction=0.5, warmup_steps=2)


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
        weight=torch.rand(studies, regions),
    )


def test_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    whole = list(sft_schedule(CFG, STUDIES, seed=3))
    again = sft_schedule(CFG, STUDIES, seed=3)
    assert [again[index] for index in reversed(range(len(again)))] == whole[::-1]
    assert [step.study_ids for step in sft_schedule(CFG, STUDIES, seed=4)] != [step.study_ids for step in whole]


def test_the_regions_come_first_and_each_stage_starts_once() -> None:
    steps = list(sft_schedule(CFG, STUDIES, seed=0))
    assert [step.stage for step in steps] == ["regions"] * 5 + ["policy"] * 10
    assert [step.index for step in steps if step.first_of_stage] == [0, 5]
    assert sft_schedule(CFG, STUDIES, seed=0).regions_steps == 5


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


def test_an_impression_stays_behind_the_findings() -> None:
    report = Report(findings="heart is normal . small left effusion .", impression="left effusion . no pneumonia .")
    both = dataclasses.replace(STUDIES[0], report=report, target_sections="both")
    assert study_text(both) == "small left effusion . heart is normal . impression . left effusion . no pneumonia ."


def test_targets_follow_labels_and_boxes() -> None:
    targets = region_targets(STUDIES[:2], REGIONS, FINDINGS, GRID)
    row, column = REGIONS.index("left costophrenic angle"), FINDINGS.index("effusion")
    assert targets.findings.nonzero().tolist() == [[0, row, column]]
    assert targets.study_findings.nonzero().tolist() == [[0, column]]
    assert targets.significance.nonzero().tolist() == [[0, row]]
    assert attention_boxes(targets.maps[1, row], GRID).tolist() == [0.75, 0.75, 1.0, 1.0]
    assert targets.maps[:, torch.arange(len(REGIONS)) != row].sum() == 0


def test_boxes_lie_in_the_first_frontal_image() -> None:
    lateral = dataclasses.replace(STUDIES[0].images[0], view="lateral")
    study = dataclasses.replace(STUDIES[0], images=(lateral, *STUDIES[0].images))
    maps = region_targets([study, STUDIES[1]], REGIONS, FINDINGS, GRID).maps
    assert maps[0, :, : GRID**2].sum() == 0
    assert torch.equal(maps[0, :, GRID**2 :], maps[1, :, : GRID**2])


NO_TOTALS = SFTTotals(studies=0, boxes=0, tokens=0, caption_tokens=0)


def test_studies_without_labels_or_boxes_cost_nothing() -> None:
    unknown = dataclasses.replace(STUDIES[0], findings=None, region_findings=None, boxes=None)
    targets = region_targets([unknown], REGIONS, FINDINGS, GRID)
    assert [float(loss) for _, loss in extractor_losses(random_output(1), targets, CFG, NO_TOTALS).values()] == [
        0,
        0,
        0,
    ]


def test_only_labelled_studies_count_in_the_findings_loss() -> None:
    unknown = dataclasses.replace(STUDIES[0], findings=None)
    output = random_output(2)
    first = RegionOutput(**{name: value[:1] for name, value in vars(output).items()})
    both = region_targets([STUDIES[0], unknown], REGIONS, FINDINGS, GRID)
    alone = region_targets([STUDIES[0]], REGIONS, FINDINGS, GRID)
    assert findings_loss(output, both) == pytest.approx(float(findings_loss(first, alone)), rel=1e-5)


def test_attention_as_the_box_costs_nothing_and_any_other_does() -> None:
    targets = region_targets(STUDIES[:1], REGIONS, FINDINGS, GRID)
    output = random_output(1)
    assert attention_loss(output, targets) > 0.1
    output.attention.copy_(targets.maps)
    assert attention_loss(output, targets) == pytest.approx(0, abs=1e-6)
    row = REGIONS.index("left costophrenic angle")
    output.attention[0, row] = 0.0
    output.attention[0, row, 0] = 1.0
    assert attention_loss(output, targets) > 5


def test_the_extractors_losses_are_cross_entropies_and_a_divergence_with_their_weights() -> None:
    targets = region_targets(STUDIES[:1], REGIONS, FINDINGS, GRID)
    regions, findings = len(REGIONS), len(FINDINGS)
    output = random_output(1)
    output.findings.fill_(1.0)
    output.study_findings.fill_(2.0)
    output.significance.fill_(3.0)
    output.attention.fill_(1 / GRID**2)
    box = targets.maps[targets.maps > 0]

    def cost(logit: float) -> float:
        """Of a label that is 0; one that is 1 costs less by the logit."""
        return math.log1p(math.exp(logit))

    # One finding, in one of the regions; two studies with labels and four boxes in the whole step.
    expected = {
        "findings_loss": (2.0, (findings * cost(1) - 1 / regions + findings * cost(2) - 2) / 2),
        "significance_loss": (3.0, (cost(3) - 3 / regions) / 2),
        "attention_loss": (5.0, (math.log(GRID**2) + float((box * box.log()).sum())) / 4),
    }
    cfg = dataclasses.replace(CFG, region_weight=2.0, significance_weight=3.0, attention_weight=5.0)
    totals = SFTTotals(studies=2, boxes=4, tokens=0, caption_tokens=0)
    found = extractor_losses(output, targets, cfg, totals)
    assert found.keys() == expected.keys()
    for name, (weight, loss) in found.items():
        assert (weight, float(loss)) == pytest.approx(expected[name], rel=1e-4), name


def test_the_report_loss_weighs_tokens() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]])
    weights = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert report_loss(logprobs, weights) == pytest.approx(2 + 2 + 3 + 4)


# Captions of regions


def test_captions_are_of_the_regions_with_findings_first() -> None:
    study = STUDIES[0]
    spoken = region_texts(study)
    assert spoken["cardiac silhouette"] == "the heart is normal ."
    assert spoken["left costophrenic angle"] == "small left effusion ."
    drawn = [choose_captions(study, REGIONS, 2, f"0/{step}") for step in range(20)]
    assert all(next(iter(captions)) == "left costophrenic angle" for captions in drawn)
    assert len({tuple(captions) for captions in drawn}) > 1
    assert drawn[3] == choose_captions(study, REGIONS, 2, "0/3")


def test_the_data_sets_own_region_sentences_go_before_the_lexicon() -> None:
    own = {"left lung": ("small left effusion .", "lung is clear"), "spine": ()}
    study = dataclasses.replace(STUDIES[0], region_sentences=own)
    assert region_texts(study) == {"left lung": "small left effusion . lung is clear ."}
    assert choose_captions(study, ["spine"], 3, "0") == {}


def test_a_long_caption_keeps_its_findings_and_ends_with_a_sentence() -> None:
    report = Report(findings="the lungs are well expanded and clear . " * 8 + "opacity in the left lung base .")
    text = region_texts(dataclasses.replace(STUDIES[0], report=report))["left lung"]
    assert text.startswith("opacity in the left lung base . the lungs")
    assert text.endswith("clear .")
    assert len(text.split()) < 30


def test_no_captions_are_drawn_where_none_are_wanted() -> None:
    assert choose_captions(STUDIES[0], REGIONS, 0, "0") == {}
    assert choose_captions(STUDIES[0], (), 3, "0") == {}


# With a policy


class RandomImages:
    """An image store of random features: a study's are always the same."""

    grid, channels = GRID, CHANNELS

    def prepare(self, studies: Sequence[Study], progress: object = None) -> None:
        pass

    def load_batch(self, studies: Sequence[Study]) -> FeatureBatch:
        return collate_features([self.load(study) for study in studies])

    def load(self, study: Study) -> PatchFeatures:
        patches = len(study.images) * GRID**2
        generator = torch.Generator().manual_seed(int(study.id[1:]))
        return PatchFeatures(
            torch.randn(patches, CHANNELS, generator=generator), torch.zeros(patches, dtype=torch.long)
        )


STORE = RandomImages()


def model_config(**changes: object) -> ModelConfig:
    llm = LLMConfig(hidden_size=64, num_layers=1, num_heads=2, intermediate_size=64, vocab_size=300)
    return dataclasses.replace(ModelConfig(llm=llm, extractor_size=32, extractor_heads=2), **changes)


def config(model: ModelConfig, budget: int = 10**6) -> Config:
    return Config(
        data=DataConfig(name="rendered_openi"),
        model=model,
        rollout=RolloutConfig(max_new_tokens=32),
        learner=LearnerConfig(micro_batch_tokens=budget, sft=CFG),
    )


def make_policy(model: ModelConfig, folder: Path) -> ReportPolicy:
    texts = [study.target for study in STUDIES]
    return build_policy(model, texts, 0, grid=GRID, channels=CHANNELS, target="findings", cache_dir=str(folder))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ReportPolicy:
    return make_policy(model_config(), tmp_path_factory.mktemp("cache"))


def step_of(stage: Stage, index: int = 0) -> SFTStep:
    return SFTStep(index, stage, False, tuple(study.id for study in STUDIES[:6]), 1e-3)


def cut(policy: ReportPolicy, stage: Stage, cfg: Config, rank: int = 0, world_size: int = 1) -> list[SFTBatch]:
    return sft_micro_batches(policy, STORE, STUDIES[:6], cfg, step_of(stage), rank, world_size)


def gradient(policy: ReportPolicy, stage: Stage, batches: Sequence[SFTBatch]) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    totals = sft_totals(batches, CFG)
    for batch in batches:
        sft_loss(policy, batch, stage, CFG, totals)[0].backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", ["regions", "policy"])
def test_the_split_into_micro_batches_never_changes_the_gradient(policy: ReportPolicy, stage: Stage) -> None:
    unknown = dataclasses.replace(STUDIES[5], findings=None, region_findings=None, boxes=None)
    two = dataclasses.replace(STUDIES[4], images=STUDIES[4].images * 2)
    studies = [*STUDIES[:4], two, unknown]
    parts = [
        sft_micro_batches(policy, STORE, studies, config(model_config(), budget), step_of(stage), rank, world)
        for budget, ranks, world in ((10**6, (0,), 1), (1, (0,), 1), (1, (0, 1, 2, 3), 4))
        for rank in ranks
    ]
    whole, single, ranked = parts[0], parts[1], [batch for part in parts[2:] for batch in part]
    assert (len(whole), len(single)) == (1, 6)
    assert any(not batch.counts for batch in ranked)
    expected = gradient(policy, stage, whole)
    for batches in (single, ranked):
        found = gradient(policy, stage, batches)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(found[name], value, atol=1e-6), name


def test_micro_batches_keep_to_the_budget_and_hold_every_study_once(policy: ReportPolicy) -> None:
    batches = cut(policy, "policy", config(model_config(), budget=400))
    assert len(batches) > 1
    assert sum(len(batch) for batch in batches) == 6
    for batch in batches:
        assert batch.captions is not None
        tokens = batch.inputs.prompts.tokens.numel() + batch.mask.numel()
        assert len(batch) == 1 or tokens <= 400


def test_micro_batches_hold_no_more_studies_than_allowed(policy: ReportPolicy) -> None:
    cfg = config(model_config())
    cfg.learner.micro_batch_sequences = 2
    assert [len(batch) for batch in cut(policy, "policy", cfg)] == [2, 2, 2]


def test_the_same_step_draws_the_same_captions_and_another_step_others(policy: ReportPolicy) -> None:
    def captions(index: int) -> list[int]:
        cfg = config(model_config())
        (batch,) = sft_micro_batches(policy, STORE, STUDIES[:6], cfg, step_of("regions", index))
        assert batch.captions is not None
        return batch.captions.region.tolist()

    assert captions(1) == captions(1)
    assert len({tuple(captions(index)) for index in range(6)}) > 1


def test_a_step_without_any_caption_reaches_the_same_parameters_and_counts_none(policy: ReportPolicy) -> None:
    """Ranks whose gradients lie on different parameters can't be reduced together."""
    cfg = config(model_config())
    silent = [dataclasses.replace(study, region_sentences={}) for study in STUDIES[:2]]
    (batch,) = sft_micro_batches(policy, STORE, silent, cfg, step_of("regions", 0))
    assert not batch.captioned
    assert sft_totals([batch], CFG).caption_tokens == 0
    (usual,) = cut(policy, "regions", cfg)
    found = gradient(policy, "regions", [batch])
    assert found.keys() == gradient(policy, "regions", [usual]).keys()
    assert not any(value.any() for name, value in found.items() if name.startswith("llm."))


def test_tokens_that_state_findings_weigh_more_in_the_report(policy: ReportPolicy) -> None:
    (batch,) = cut(policy, "policy", config(model_config()))
    for row in range(len(batch)):
        stated = policy.decode(batch.ids[row][batch.stated[row]])
        assert stated == findings_first(policy.decode(batch.ids[row][batch.mask[row]]))[0]
    heavy = dataclasses.replace(CFG, finding_token_weight=3.0)
    assert sft_totals([batch], heavy).tokens == int(batch.mask.sum()) + 2 * int(batch.stated.sum())
    assert batch.stated.any()
    with torch.no_grad():
        parts = [sft_loss(policy, batch, "policy", cfg, sft_totals([batch], cfg))[1] for cfg in (CFG, heavy)]
        logprobs = policy(batch.inputs, batch.ids, batch.mask).logprobs
    weights = batch.mask + 2.0 * batch.stated
    assert parts[1]["report_loss"] == pytest.approx(float(-(logprobs * weights).sum() / weights.sum()), rel=1e-5)
    assert parts[1]["report_loss"] != pytest.approx(parts[0]["report_loss"], rel=1e-3)


def test_every_loss_counts_by_its_weight(policy: ReportPolicy) -> None:
    (batch,) = cut(policy, "policy", config(model_config()))
    cfg = dataclasses.replace(CFG, region_weight=2.0, significance_weight=3.0, attention_weight=5.0, caption_weight=7.0)
    weights = {"findings_loss": 2, "significance_loss": 3, "attention_loss": 5, "caption_loss": 7, "report_loss": 1}
    with torch.no_grad():
        loss, parts = sft_loss(policy, batch, "policy", cfg, sft_totals([batch], cfg))
    assert all(parts[name] > 0 for name in weights)
    assert float(loss) == pytest.approx(sum(weight * parts[name] for name, weight in weights.items()), rel=1e-5)


def test_captions_count_in_the_budget(policy: ReportPolicy) -> None:
    def batches(captions: int) -> int:
        cfg = config(model_config(), budget=150)
        cfg.learner.sft = dataclasses.replace(CFG, captions_per_study=captions)
        return len(cut(policy, "regions", cfg))

    assert batches(captions=1) < batches(captions=9)


def trained_in(policy: ReportPolicy, stage: Stage, cfg: Config) -> list[torch.nn.Parameter]:
    seeing, writing = stage_parameters(policy, stage, cfg)
    return seeing + writing


def test_stage_regions_trains_the_language_model_by_captions_only(policy: ReportPolicy) -> None:
    with_captions, without = config(model_config()), config(model_config(captioning=False))
    trained = {id(p) for p in trained_in(policy, "regions", with_captions)}
    assert trained == {id(p) for p in policy.parameters()}
    assert gradient(policy, "regions", cut(policy, "regions", with_captions))["llm.model.embed_tokens.weight"].any()
    trained = {id(p) for p in trained_in(policy, "regions", without)}
    assert trained == {id(p) for p in policy.extractor.parameters()}
    (batch,) = cut(policy, "regions", without)
    assert batch.captions is None
    assert not any(name.startswith("llm.") for name in gradient(policy, "regions", [batch]))


def test_stage_policy_trains_everything(policy: ReportPolicy) -> None:
    cfg = config(model_config())
    found = gradient(policy, "policy", cut(policy, "policy", cfg))
    assert found.keys() == {name for name, _ in policy.named_parameters()}
    assert len(trained_in(policy, "policy", cfg)) == len(found)


def test_with_lora_only_adapters_of_the_language_model_are_trained(tmp_path: Path) -> None:
    llm = dataclasses.replace(model_config().llm, train="lora", lora=LoRAConfig(rank=2))
    model = model_config(llm=llm)
    policy = make_policy(model, tmp_path)
    trained = {id(p) for p in trained_in(policy, "policy", config(model))}
    names = {name for name, p in policy.llm.named_parameters() if id(p) in trained}
    assert names
    assert all("lora_" in name for name in names)
    assert all(id(p) in trained for p in policy.extractor.parameters())


class RandomPixels(RandomImages):
    """The same for a backbone that is trained."""

    def load_batch(self, studies: Sequence[Study]) -> PixelBatch:  # type: ignore[override]
        pixels = torch.randint(256, (len(studies), 1, 64, 64), dtype=torch.uint8)
        return PixelBatch(pixels, torch.zeros(len(studies), 1).long(), torch.ones(len(studies), 1).bool())


@pytest.mark.parametrize("stage", ["regions", "policy"])
def test_a_backbone_that_is_to_be_trained_moves_in_both_stages(tmp_path: Path, stage: Stage) -> None:
    path = save_model(tmp_path / "vit", ViTModel(ViTConfig(**TINY, image_size=64, patch_size=16)))
    model = model_config(backbone=BackboneConfig(path=path, train="full"))
    texts = [study.target for study in STUDIES]
    sizes = {"grid": GRID, "channels": 16, "image_size": 64}
    policy = build_policy(model, texts, 0, target="findings", cache_dir=str(tmp_path), **sizes)
    cfg = config(model)
    batches = sft_micro_batches(policy, RandomPixels(), STUDIES[:6], cfg, step_of(stage))
    trained = trained_in(policy, stage, cfg)
    assert policy.backbone is not None
    assert {id(p) for p in policy.backbone.trained_parameters()} < {id(p) for p in trained}
    before = {name: p.detach().clone() for name, p in policy.backbone.named_parameters()}
    gradient(policy, stage, batches)
    torch.optim.SGD(trained, lr=0.1).step()
    moved = [name for name, p in policy.backbone.named_parameters() if not torch.equal(p, before[name])]
    assert any("patch_embeddings" in name for name in moved)


@pytest.mark.parametrize("changes", [{"regions": False}, {"global_tokens": 0}, {"gate": False}])
def test_every_ablation_can_be_trained(tmp_path: Path, changes: dict[str, object]) -> None:
    model = model_config(**changes)
    policy = make_policy(model, tmp_path)
    for stage in ("regions", "policy"):
        batches = cut(policy, stage, config(model))
        loss, parts = sft_loss(policy, batches[0], stage, CFG, sft_totals(batches, CFG))
        assert loss.isfinite()
        assert (parts["caption_loss"] > 0) == model.regions
        assert all(value.isfinite().all() for value in gradient(policy, stage, batches).values())


def test_a_caption_reaches_its_regions_token_and_no_other(policy: ReportPolicy) -> None:
    (batch,) = cut(policy, "regions", config(model_config()))
    assert batch.captions is not None
    regions = policy.extract(batch.inputs.images)
    regions.base.retain_grad()
    embeds = policy.caption_embeds(regions, batch.captions.study, batch.captions.region)
    embeds.square().sum().backward()
    assert regions.base.grad is not None
    touched = {tuple(place) for place in regions.base.grad.abs().sum(-1).nonzero().tolist()}
    assert touched == set(zip(batch.captions.study.tolist(), batch.captions.region.tolist(), strict=True))


def test_the_report_loss_reaches_the_findings_heads_through_the_prompt(policy: ReportPolicy) -> None:
    policy.zero_grad()
    (batch,) = cut(policy, "policy", config(model_config()))
    output = policy(batch.inputs, batch.ids, batch.mask)
    assert output.logprobs is not None
    report_loss(output.logprobs, batch.mask.float()).backward()
    for head in (policy.extractor.region_findings, policy.extractor.significance, policy.extractor.study_findings):
        assert head.weight.grad is not None
        assert head.weight.grad.abs().sum() > 0


def test_a_few_steps_learn_a_batch_by_heart(policy: ReportPolicy) -> None:
    cfg = config(model_config())
    batches = cut(policy, "policy", cfg)
    totals = sft_totals(batches, CFG)
    optimizer = torch.optim.AdamW(trained_in(policy, "policy", cfg), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, _ = sft_loss(policy, batches[0], "policy", CFG, totals)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
