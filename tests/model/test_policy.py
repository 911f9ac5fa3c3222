"""The LM-RRG policy: what its prompt is made of, its log-probabilities, and how it is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from configs.schema import LLMConfig, ModelConfig
from rrg.data.regions import REGIONS
from rrg.errors import UserError
from rrg.model.build import build_policy, load_policy, save_policy
from rrg.model.features import FeatureBatch, PatchFeatures, collate_features
from rrg.model.policy import ReportPolicy

REPORTS = ["the heart is normal in size .", "small left pleural effusion .", "the lungs are clear ."]
TINY = ModelConfig(
    llm=LLMConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=96, vocab_size=200),
    extractor_size=32,
    extractor_heads=2,
    global_tokens=2,
)


@pytest.fixture(scope="module")
def policy() -> ReportPolicy:
    return build_policy(TINY, REPORTS, 0, image_size=224)


def features(policy: ReportPolicy, studies: int, views: int = 1, seed: int = 0) -> FeatureBatch:
    shape = policy.extractor.shape
    generator = torch.Generator().manual_seed(seed)
    patches = views * shape.grid**2
    codes = torch.arange(views).repeat_interleave(shape.grid**2)
    return collate_features(
        [PatchFeatures(torch.randn(patches, shape.patch_channels, generator=generator), codes) for _ in range(studies)]
    )


@torch.no_grad()
def test_log_probs_equal_those_of_the_full_logits(policy: ReportPolicy) -> None:
    embeds = policy.prompt_embeds(policy.extract(features(policy, 2)))
    ids, mask = policy.tokenize(REPORTS[:2], 32)
    logprobs, entropy = policy.completion_logprobs(embeds, ids, mask, temperature=0.7)
    inputs = torch.cat([embeds, policy.llm.get_input_embeddings()(ids)], dim=1)
    logits = policy.llm(inputs_embeds=inputs).logits[:, embeds.shape[1] - 1 : -1] / 0.7
    expected = logits.log_softmax(-1)
    assert torch.allclose(logprobs[mask], expected.gather(-1, ids[..., None])[..., 0][mask], atol=1e-5)
    assert torch.allclose(entropy[mask], -(expected.exp() * expected).sum(-1)[mask], atol=1e-4)
    assert (logprobs[~mask] == 0).all()


@torch.no_grad()
def test_the_prompt_has_a_token_for_every_region_and_changes_with_the_image(policy: ReportPolicy) -> None:
    embeds = policy.prompt_embeds(policy.extract(features(policy, 2)))
    assert embeds.shape == (2, policy.prompt_length, 64)
    visual = TINY.global_tokens + len(REGIONS)
    assert not torch.allclose(embeds[0, :visual], embeds[1, :visual])
    assert torch.equal(embeds[0, visual:], embeds[1, visual:])


@torch.no_grad()
def test_a_significant_region_weighs_more(policy: ReportPolicy) -> None:
    out = policy.extract(features(policy, 1))
    closed = type(out)(**{**vars(out), "significance": torch.full_like(out.significance, -20.0)})
    opened = type(out)(**{**vars(out), "significance": torch.full_like(out.significance, 20.0)})
    assert torch.allclose(closed.gated_tokens(), out.base, atol=1e-5)
    assert torch.allclose(opened.gated_tokens(), out.base + out.content, atol=1e-5)


@torch.no_grad()
def test_several_views_give_the_same_number_of_tokens_and_each_counts(policy: ReportPolicy) -> None:
    two = features(policy, 1, views=2)
    other = two.values.clone()
    other[:, len(other[0]) // 2 :] = other[:, len(other[0]) // 2 :].flip(-1)
    first = policy.prompt_embeds(policy.extract(two))
    second = policy.prompt_embeds(policy.extract(FeatureBatch(other, two.views, two.mask)))
    assert first.shape[1] == policy.prompt_length
    assert not torch.allclose(first, second)


@torch.no_grad()
def test_padding_by_a_study_with_more_views_changes_nothing(policy: ReportPolicy) -> None:
    one, two = features(policy, 1), features(policy, 1, views=2, seed=1)
    both = collate_features([PatchFeatures(b.values[0], b.views[0]) for b in (one, two)])
    alone = policy.prompt_embeds(policy.extract(one))[0]
    assert torch.allclose(policy.prompt_embeds(policy.extract(both))[0], alone, atol=1e-5)


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


def test_a_saved_policy_comes_back_bit_for_bit(policy: ReportPolicy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.state_dict().keys() == policy.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in policy.state_dict().items())
    assert loaded.prompt_length == policy.prompt_length


def test_a_report_survives_the_tokenizer(policy: ReportPolicy) -> None:
    ids, mask = policy.tokenize(REPORTS, 32)
    assert [policy.decode(row[keep]) for row, keep in zip(ids, mask, strict=True)] == REPORTS
    assert (ids[mask.cumsum(1) == mask.sum(1, keepdim=True)][: len(REPORTS)] == policy.eos_token_id).any()


def test_any_hugging_face_causal_lm_writes_the_report(policy: ReportPolicy, tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=len(policy.tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=96,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    policy.tokenizer.save_pretrained(tmp_path / "qwen")
    cfg = ModelConfig(llm=LLMConfig(path=str(tmp_path / "qwen")), extractor_size=32, extractor_heads=2)
    built = build_policy(cfg, REPORTS, 0, image_size=224)
    output = built(features(built, 1), *built.tokenize(REPORTS[:1], 32))
    assert output.logprobs is not None
    assert torch.isfinite(output.logprobs).all()


def test_a_folder_that_is_no_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy\.json is missing"):
        load_policy(tmp_path)
