"""The LM-RRG policy: what its prompt is made of, its log-probabilities, and how it is stored."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from configs.schema import LLMConfig, ModelConfig, PromptConfig, RolloutConfig
from rrg.data.regions import REGIONS
from rrg.errors import UserError
from rrg.model.build import build_policy, load_policy, save_policy
from rrg.model.features import FeatureBatch, PatchFeatures, PixelBatch, collate_features
from rrg.model.policy import CaptionBatch, PolicyInputs, ReportPolicy
from rrg.model.prompts import IMAGE, PromptBatch, collate_prompts

REPORTS = ["the heart is normal in size .", "small left pleural effusion .", "the lungs are clear ."]
TINY = ModelConfig(
    llm=LLMConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=96, vocab_size=200),
    prompt=PromptConfig(template="{images}{target} :{bos}", context=[]),
    extractor_size=32,
    extractor_heads=2,
    global_tokens=2,
)


def build(cfg: ModelConfig, tmp_path: Path) -> ReportPolicy:
    return build_policy(cfg, REPORTS, 0, grid=4, channels=24, target="findings", cache_dir=str(tmp_path))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ReportPolicy:
    return build(TINY, tmp_path_factory.mktemp("cache"))


def features(policy: ReportPolicy, studies: int, views: int = 1, seed: int = 0) -> FeatureBatch:
    shape = policy.extractor.shape
    generator = torch.Generator().manual_seed(seed)
    patches = views * shape.grid**2
    codes = torch.arange(views).repeat_interleave(shape.grid**2)
    return collate_features(
        [PatchFeatures(torch.randn(patches, shape.patch_channels, generator=generator), codes) for _ in range(studies)]
    )


def prompts(policy: ReportPolicy, words: list[str]) -> PromptBatch:
    """Prompts of different lengths: some words, then the visual tokens, then some words more."""
    rows = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in words]
    return collate_prompts([[*row, *[IMAGE] * policy.visual_tokens, *row[:1]] for row in rows])


def inputs(policy: ReportPolicy, studies: int, views: int = 1, seed: int = 0) -> PolicyInputs:
    words = ["heart :", "findings of the lungs :", "."]
    return PolicyInputs(features(policy, studies, views, seed), prompts(policy, words[:studies]))


def embeds_of(policy: ReportPolicy, batch: PolicyInputs) -> torch.Tensor:
    return policy.prompt_embeds(policy.extract(batch.images), batch.prompts)[0]


@torch.no_grad()
def test_log_probs_equal_those_of_each_prompt_and_report_alone(policy: ReportPolicy) -> None:
    batch = inputs(policy, 3)
    ids, mask = policy.tokenize(REPORTS, 32)
    out = policy(batch, ids, mask, temperature=0.7)
    for row in range(3):
        length, count = int(out.lengths[row]), int(mask[row].sum())
        own = out.embeds[row : row + 1, :length]
        whole = torch.cat([own, policy.llm.get_input_embeddings()(ids[row : row + 1, :count])], dim=1)
        expected = (policy.llm(inputs_embeds=whole).logits[0, length - 1 : -1] / 0.7).log_softmax(-1)
        picked = expected.gather(-1, ids[row, :count, None])[:, 0]
        assert torch.allclose(out.logprobs[row, :count], picked, atol=1e-5)
        assert torch.allclose(out.entropy[row, :count], -(expected.exp() * expected).sum(-1), atol=1e-4)
    assert (out.logprobs[~mask] == 0).all()


@torch.no_grad()
def test_several_reports_of_a_study_share_its_prompt(policy: ReportPolicy) -> None:
    batch = inputs(policy, 2)
    ids, mask = policy.tokenize([REPORTS[0], REPORTS[1], REPORTS[2]], 32)
    together = policy(batch, ids, mask, counts=torch.tensor([2, 1])).logprobs
    alone = policy(PolicyInputs(FeatureBatch(batch.images.values[1:], batch.images.views[1:], batch.images.mask[1:]),
                                PromptBatch(batch.prompts.tokens[1:])), ids[2:], mask[2:]).logprobs  # fmt: skip
    assert torch.allclose(together[2:], alone, atol=1e-5)


@torch.no_grad()
def test_the_prompt_has_a_token_for_every_region_and_changes_with_the_image(policy: ReportPolicy) -> None:
    batch = PolicyInputs(features(policy, 2), prompts(policy, ["heart :", "heart :"]))
    embeds = embeds_of(policy, batch)
    visual = TINY.global_tokens + len(REGIONS)
    assert policy.visual_tokens == visual
    places = batch.prompts.tokens[0] == IMAGE
    assert int(places.sum()) == visual
    assert not torch.allclose(embeds[0, places], embeds[1, places])
    assert torch.equal(embeds[0, ~places], embeds[1, ~places])


def test_a_prompt_with_another_number_of_image_places_is_refused(policy: ReportPolicy) -> None:
    short = PromptBatch(collate_prompts([[IMAGE] * (policy.visual_tokens - 1)]).tokens)
    with pytest.raises(UserError, match=f"{policy.visual_tokens} visual tokens"):
        policy(PolicyInputs(features(policy, 1), short))


def test_a_prompt_and_a_report_must_fit_the_engine(policy: ReportPolicy) -> None:
    policy.check_room(RolloutConfig(max_model_len=128, max_new_tokens=64))
    with pytest.raises(UserError, match=r"rollout\.max_model_len=64 is too small"):
        policy.check_room(RolloutConfig(max_model_len=64, max_new_tokens=60))
    with pytest.raises(UserError, match="positions"):
        policy.check_room(RolloutConfig(max_model_len=10**6))


def test_pixels_are_refused_where_the_backbone_is_frozen(policy: ReportPolicy) -> None:
    pixels = PixelBatch(torch.zeros(1, 1, 8, 8).byte(), torch.zeros(1, 1).long(), torch.ones(1, 1).bool())
    with pytest.raises(ValueError, match="FeatureBatch"):
        policy.extract(pixels)


def test_a_caption_is_prompted_by_its_regions_token_alone(policy: ReportPolicy) -> None:
    batch = inputs(policy, 2)
    ids, mask = policy.tokenize(["clear .", "large ."], 16)
    captions = CaptionBatch(torch.tensor([1, 0]), torch.tensor([3, 7]), ids, mask)
    out = policy(batch, captions=captions)
    assert out.logprobs is None
    token = out.regions.gated_tokens()[1, 3]
    start = policy.llm.get_input_embeddings()(policy.caption_ids)
    count = int(mask[0].sum())
    whole = torch.cat([token[None], start, policy.llm.get_input_embeddings()(ids[0, :count])])[None]
    expected = policy.llm(inputs_embeds=whole).logits[0, len(start) : -1].log_softmax(-1)
    picked = expected.gather(-1, ids[0, :count, None])[:, 0]
    assert torch.allclose(out.caption_logprobs[0, :count], picked, atol=1e-5)
    (gradient,) = torch.autograd.grad(out.caption_logprobs[0].sum(), out.regions.content)
    touched = gradient.abs().sum(-1) > 0
    assert touched.nonzero().tolist() == [[1, 3]]


@torch.no_grad()
def test_several_views_give_the_same_number_of_tokens_and_each_counts(policy: ReportPolicy) -> None:
    two = inputs(policy, 1, views=2)
    other = two.images.values.clone()
    other[:, len(other[0]) // 2 :] = other[:, len(other[0]) // 2 :].flip(-1)
    first = embeds_of(policy, two)
    second = embeds_of(policy, replace(two, images=FeatureBatch(other, two.images.views, two.images.mask)))
    assert first.shape == embeds_of(policy, inputs(policy, 1)).shape
    assert not torch.allclose(first, second)


@torch.no_grad()
def test_padding_by_a_study_with_more_views_changes_nothing(policy: ReportPolicy) -> None:
    one, two = inputs(policy, 1), inputs(policy, 1, views=2, seed=1)
    both = collate_features([PatchFeatures(b.images.values[0], b.images.views[0]) for b in (one, two)])
    alone = embeds_of(policy, one)[0]
    together = embeds_of(policy, PolicyInputs(both, prompts(policy, ["heart :", "heart :"])))[0]
    assert torch.allclose(together, alone, atol=1e-5)


def test_region_queries_are_the_language_models_own_encodings(policy: ReportPolicy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "policy")
    other = load_policy(tmp_path / "policy")
    before = other.extractor.region_queries.clone()
    other.refresh_region_queries()
    assert torch.allclose(other.extractor.region_queries, before, atol=1e-6)
    with torch.no_grad():
        other.llm.get_input_embeddings().weight.mul_(2.0)
    other.refresh_region_queries()
    assert not torch.allclose(other.extractor.region_queries, before)


@pytest.mark.parametrize(
    ("off", "visual"),
    [({"regions": False}, 2), ({"global_tokens": 0}, len(REGIONS)), ({"gate": False}, 2 + len(REGIONS))],
)
def test_parts_of_the_model_can_be_switched_off(off: dict[str, int], visual: int, tmp_path: Path) -> None:
    policy = build(replace(TINY, **off), tmp_path)  # type: ignore[arg-type]
    assert policy.visual_tokens == visual
    out = policy(inputs(policy, 2), *policy.tokenize(REPORTS[:2], 16))
    assert torch.isfinite(out.logprobs).all()
    assert torch.isfinite(out.regions.study_findings).all()
    save_policy(policy, tmp_path / "policy")
    with torch.no_grad():
        again = load_policy(tmp_path / "policy")(inputs(policy, 2), *policy.tokenize(REPORTS[:2], 16))
    assert torch.equal(again.logprobs, out.logprobs)


def test_a_saved_policy_comes_back_bit_for_bit(policy: ReportPolicy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.state_dict().keys() == policy.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in policy.state_dict().items())
    assert loaded.prompt == policy.prompt


def test_saved_weights_can_be_read_by_whom_the_umask_lets(policy: ReportPolicy, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_policy(policy, tmp_path / "policy")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "policy").rglob("*") if path.is_file()]
    assert {"extractor.safetensors", "model.safetensors"} <= {path.name for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_a_report_survives_the_tokenizer(policy: ReportPolicy) -> None:
    ids, mask = policy.tokenize(REPORTS, 32)
    assert [policy.decode(row[keep]) for row, keep in zip(ids, mask, strict=True)] == REPORTS
    assert (ids[mask.cumsum(1) == mask.sum(1, keepdim=True)][: len(REPORTS)] == policy.eos_token_id).any()


def test_any_hugging_face_causal_lm_writes_the_report(policy: ReportPolicy, tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=len(policy.tokenizer) + 1,  # transformers' tokenizer of this family adds a token of its own
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=96,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    policy.tokenizer.save_pretrained(tmp_path / "qwen")
    built = build(replace(TINY, llm=LLMConfig(path=str(tmp_path / "qwen"))), tmp_path)
    output = built(inputs(built, 1), *built.tokenize(REPORTS[:1], 32))
    assert output.logprobs is not None
    assert torch.isfinite(output.logprobs).all()


def test_a_folder_that_is_no_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy\.json is missing"):
        load_policy(tmp_path)
