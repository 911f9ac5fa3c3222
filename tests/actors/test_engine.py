"""The rollout engine against transformers, under bad inputs, and across weight updates."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from actors.engine import RolloutEngine
from actors.errors import EngineError, PromptError, WeightsError
from actors.samples import Prompt, Sample, Sampling
from configs.schema import RolloutConfig
from tests.actors.conftest import EOS, HIDDEN, named_tensors

SAMPLING = Sampling(max_new_tokens=16, eos=EOS)
GREEDY = Sampling(max_new_tokens=16, eos=EOS, greedy=True)


def make_prompts(count: int, length: int = 40, samples: int = 1) -> list[Prompt]:
    generator = np.random.default_rng(0)
    embeds = generator.normal(size=(count, length, HIDDEN)).astype(np.float32)
    return [Prompt(embeds[i // samples], seed=1000 + i) for i in range(count * samples)]


def run(engine: RolloutEngine, prompts: list[Prompt], sampling: Sampling = SAMPLING) -> list[Sample]:
    return sorted(engine.generate(prompts, sampling), key=lambda sample: sample.index)


@torch.no_grad()
def reference_logprobs(model: Any, prompt: Prompt, token_ids: np.ndarray, temperature: float) -> np.ndarray:
    ids = torch.as_tensor(token_ids, dtype=torch.long)[None]
    embeds = torch.cat([torch.as_tensor(prompt.embeds)[None], model.get_input_embeddings()(ids)], dim=1)
    logits = model(inputs_embeds=embeds).logits[0, len(prompt.embeds) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, ids[0, :, None])[:, 0].numpy()


@torch.no_grad()
def reference_greedy(model: Any, prompt: Prompt, max_new_tokens: int) -> list[int]:
    out = model.generate(
        inputs_embeds=torch.as_tensor(prompt.embeds)[None], do_sample=False, max_new_tokens=max_new_tokens,
        eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    return [int(token) for token in out[0]]


def test_heads_that_vllm_cannot_compute_are_refused_before_a_run_trains_them(
    build_engine: Callable[..., RolloutEngine], llama: Any, tmp_path: Path
) -> None:
    small = LlamaConfig(
        **{**llama.config.to_dict(), "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    )
    small.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="attention heads of 16 values: on CPUs vLLM takes 32, 64"):
        build_engine(tmp_path)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_transformers(engine: RolloutEngine, llama: Any, temperature: float) -> None:
    prompts = make_prompts(8)
    samples = run(engine, prompts, Sampling(max_new_tokens=16, eos=EOS, temperature=temperature))
    assert [sample.index for sample in samples] == list(range(8))
    for prompt, sample in zip(prompts, samples, strict=True):
        expected = reference_logprobs(llama, prompt, sample.token_ids, temperature)
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)


def test_a_seeded_sample_is_the_same_alone_and_in_any_batch(engine: RolloutEngine) -> None:
    prompts = make_prompts(5, samples=6)
    together = run(engine, prompts)
    assert len({tuple(sample.token_ids) for sample in together}) > 20, "samples of a study have to differ"
    for index in (0, 7, 29):
        (alone,) = run(engine, [prompts[index]])
        assert alone.token_ids.tolist() == together[index].token_ids.tolist()
        np.testing.assert_allclose(alone.logprobs, together[index].logprobs, atol=1e-5)
    order = list(range(len(prompts)))
    random.Random(0).shuffle(order)
    shuffled = run(engine, [prompts[i] for i in order])
    for position, index in enumerate(order):
        assert shuffled[position].token_ids.tolist() == together[index].token_ids.tolist()


def test_the_same_call_gives_the_same_bits(engine: RolloutEngine) -> None:
    prompts = make_prompts(5, samples=6)
    first, _, again = run(engine, prompts), run(engine, make_prompts(3, length=33)), run(engine, prompts)
    for a, b in zip(first, again, strict=True):
        assert a.token_ids.tobytes() == b.token_ids.tobytes()
        assert a.logprobs.tobytes() == b.logprobs.tobytes()


def test_greedy_reports_are_those_of_transformers(engine: RolloutEngine, llama: Any) -> None:
    prompts = make_prompts(4)
    for prompt, sample in zip(prompts, run(engine, prompts, GREEDY), strict=True):
        assert sample.token_ids.tolist() == reference_greedy(llama, prompt, 16)


def test_a_sample_ends_with_the_eos_token_or_at_the_length_limit(engine: RolloutEngine) -> None:
    samples = run(engine, make_prompts(8, samples=8), Sampling(max_new_tokens=60, eos=EOS))
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        stopped = sample.finish_reason == "stop"
        assert (sample.token_ids[-1] == EOS) == stopped
        assert EOS not in sample.token_ids[:-1]
        assert stopped or len(sample.token_ids) == 60
        assert len(sample.logprobs) == len(sample.token_ids)


def test_finished_samples_are_handed_on_while_others_run(engine: RolloutEngine) -> None:
    stream = engine.generate(make_prompts(8, samples=8), Sampling(max_new_tokens=60, eos=EOS))
    first = next(stream)
    assert first.finish_reason == "stop"
    assert engine._llm.get_num_unfinished_requests() > 0
    assert len(list(stream)) == 63


def test_leaving_early_drops_the_rest_and_the_engine_serves_on(engine: RolloutEngine) -> None:
    before = run(engine, make_prompts(4))
    stream = engine.generate(make_prompts(8, samples=8), Sampling(max_new_tokens=60, eos=EOS))
    next(stream)
    with pytest.raises(EngineError, match="busy"):
        engine.generate(make_prompts(1), SAMPLING)
    stream.close()  # type: ignore[attr-defined]
    assert [s.token_ids.tolist() for s in run(engine, make_prompts(4))] == [s.token_ids.tolist() for s in before]


def interrupt_after(tokens: int) -> Callable[[], bool]:
    """Says yes once every sample that still runs has so many tokens: all begin at once, and get one a step."""
    asked = iter(range(1000))
    return lambda: next(asked) >= tokens


def continued(prompt: Prompt, read: np.ndarray) -> Prompt:
    return Prompt(np.concatenate([prompt.embeds, read]), prompt.seed, written=len(read))


def go_on(engine: RolloutEngine, llama: Any, prompts: list[Prompt], partial: list[Sample]) -> list[Sample]:
    """Runs the interrupted samples to their ends; gives all as if there had been one sample each."""
    table = llama.get_input_embeddings().weight.detach().numpy()
    left = [sample for sample in partial if sample.finish_reason == "interrupted"]
    rests = run(engine, [continued(prompts[s.index], table[s.token_ids]) for s in left])
    whole = {sample.index: sample for sample in partial}
    for begun, rest in zip(left, rests, strict=True):
        tokens = np.concatenate([begun.token_ids, rest.token_ids])
        logprobs = np.concatenate([begun.logprobs, rest.logprobs])
        whole[begun.index] = Sample(begun.index, tokens, logprobs, rest.finish_reason)
    return [whole[index] for index in range(len(prompts))]


@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_an_interrupted_report_goes_on_from_its_tokens_so_far(engine: RolloutEngine, llama: Any, tokens: int) -> None:
    prompts = [dataclasses.replace(prompt, seed=None) for prompt in make_prompts(6)]
    whole = run(engine, prompts)
    partial = sorted(engine.generate(prompts, SAMPLING, interrupt_after(tokens)), key=lambda sample: sample.index)
    interrupted = [sample for sample in partial if sample.finish_reason == "interrupted"]
    assert interrupted
    assert all(len(sample.token_ids) == len(sample.logprobs) == tokens for sample in interrupted)
    for sample, expected in zip(go_on(engine, llama, prompts, partial), whole, strict=True):
        assert sample.token_ids.tolist() == expected.token_ids.tolist()
        assert sample.finish_reason == expected.finish_reason
        np.testing.assert_allclose(sample.logprobs, expected.logprobs, atol=1e-4)


def test_that_it_can_be_interrupted_changes_no_bit(engine: RolloutEngine) -> None:
    prompts = make_prompts(5, samples=6)
    could_be = sorted(engine.generate(prompts, SAMPLING, lambda: False), key=lambda sample: sample.index)
    for a, b in zip(run(engine, prompts), could_be, strict=True):
        assert (a.token_ids.tobytes(), a.logprobs.tobytes()) == (b.token_ids.tobytes(), b.logprobs.tobytes())


def test_other_weights_may_be_loaded_after_an_interruption(engine: RolloutEngine, llama: Any, other_llama: Any) -> None:
    prompts = make_prompts(6)
    partial = sorted(engine.generate(prompts, SAMPLING, interrupt_after(5)), key=lambda sample: sample.index)
    engine.load_weights(named_tensors(other_llama), version=1)
    whole = go_on(engine, other_llama, prompts, partial)
    for prompt, begun, sample in zip(prompts, partial, whole, strict=True):
        old = reference_logprobs(llama, prompt, sample.token_ids, 1.0)
        new = reference_logprobs(other_llama, prompt, sample.token_ids, 1.0)
        first = len(begun.token_ids)
        np.testing.assert_allclose(sample.logprobs, [*old[:first], *new[first:]], atol=1e-4)


def test_a_prompt_without_a_seed_gets_the_most_likely_report_among_samples(engine: RolloutEngine) -> None:
    prompts = make_prompts(3, samples=3)
    mixed = [dataclasses.replace(p, seed=None) if i % 3 == 0 else p for i, p in enumerate(prompts)]
    greedy, sampled, samples = run(engine, prompts, GREEDY), run(engine, prompts), run(engine, mixed)
    for index, sample in enumerate(samples):
        expected = (greedy if index % 3 == 0 else sampled)[index]
        assert sample.token_ids.tolist() == expected.token_ids.tolist()


def test_an_abandoned_engine_ends_at_once_and_serves_no_more(
    build_engine: Callable[..., RolloutEngine], llama: Any, tmp_path: Path
) -> None:
    llama.config.save_pretrained(tmp_path)
    engine = build_engine(tmp_path)
    engine.load_weights(named_tensors(llama), version=0)
    stream = engine.generate(make_prompts(8, samples=8), Sampling(max_new_tokens=60, eos=EOS))
    next(stream)
    engine.abandon()
    with pytest.raises(EngineError, match="out of order: abandoned"):
        list(stream)
    with pytest.raises(EngineError, match="abandoned"):
        engine.generate(make_prompts(1), SAMPLING)


@pytest.mark.parametrize(
    ("embeds", "reason"),
    [
        (np.full((40, HIDDEN), np.nan, dtype=np.float32), "NaN"),
        (np.full((40, HIDDEN), np.inf, dtype=np.float32), "NaN or infinite"),
        (np.zeros((40, HIDDEN + 1), dtype=np.float32), "expected"),
        (np.zeros((HIDDEN,), dtype=np.float32), "expected"),
        (np.zeros((0, HIDDEN), dtype=np.float32), "expected"),
        (np.zeros((113, HIDDEN), dtype=np.float32), "max_model_len=128"),
    ],
)
def test_bad_embeds_are_refused_and_the_engine_serves_on(
    engine: RolloutEngine, embeds: np.ndarray, reason: str
) -> None:
    before = run(engine, make_prompts(4))
    with pytest.raises(PromptError, match=reason):
        engine.generate([*make_prompts(4), Prompt(embeds, seed=0)], SAMPLING)
    after = run(engine, make_prompts(4))
    assert [s.logprobs.tobytes() for s in after] == [s.logprobs.tobytes() for s in before]


def test_new_weights_give_the_new_models_reports_and_nothing_cached_of_the_old(
    engine: RolloutEngine, llama: Any, other_llama: Any
) -> None:
    prompts = make_prompts(4, samples=2)
    for model, version in ((llama, 1), (other_llama, 2), (llama, 3)):
        engine.load_weights(named_tensors(model), version)
        assert engine.version == version
        for prompt, sample in zip(prompts, run(engine, prompts, GREEDY), strict=True):
            assert sample.token_ids.tolist() == reference_greedy(model, prompt, 16)


def test_prompt_logprobs_are_those_of_the_weights_in_force(engine: RolloutEngine, llama: Any, other_llama: Any) -> None:
    ids = list(range(3, 40))
    for model in (llama, other_llama):
        engine.load_weights(named_tensors(model), 1)
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        expected = logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()
        np.testing.assert_allclose(engine.prompt_logprobs(ids), expected, atol=1e-4)


@pytest.mark.parametrize("fault", ["missing", "fused part missing", "unknown", "shape", "NaN"])
def test_faulty_weights_are_refused_and_the_old_ones_serve_on(
    engine: RolloutEngine, other_llama: Any, fault: str
) -> None:
    before = run(engine, make_prompts(4))
    weights = named_tensors(other_llama)
    name = "model.layers.1.self_attn.k_proj.weight"
    if fault == "missing":
        del weights["lm_head.weight"]
    elif fault == "fused part missing":
        del weights[name]
    elif fault == "unknown":
        weights["vision.weight"] = weights[name]
    elif fault == "shape":
        weights[name] = weights[name][:32]
    else:
        weights[name][3, 3] = np.nan
    with pytest.raises(WeightsError, match="version 9"):
        engine.load_weights(weights, version=9)
    assert engine.version == 0
    assert [s.logprobs.tobytes() for s in run(engine, make_prompts(4))] == [s.logprobs.tobytes() for s in before]


def test_a_model_that_overflows_fails_its_samples_and_leaves_no_nan_behind(engine: RolloutEngine, llama: Any) -> None:
    before = run(engine, make_prompts(4))
    weights = named_tensors(llama)
    for layer in (0, 1):
        weights[f"model.layers.{layer}.self_attn.k_proj.weight"][:] = 3e38
        weights[f"model.layers.{layer}.self_attn.v_proj.weight"][:] = 3e38
    engine.load_weights(weights, version=1)
    assert all(sample.failed and "NaN" in sample.failed for sample in run(engine, make_prompts(4)))
    engine.load_weights(named_tensors(llama), version=2)
    assert [s.logprobs.tobytes() for s in run(engine, make_prompts(4))] == [s.logprobs.tobytes() for s in before]


def test_a_prompt_that_overflows_fails_alone(engine: RolloutEngine, llama: Any) -> None:
    weights, switch = (
        named_tensors(llama),
        5,
    )  # this hidden dimension is 0 but in the bad prompt, where the MLP overflows
    weights["model.embed_tokens.weight"][:, switch] = 0
    for layer in (0, 1):
        weights[f"model.layers.{layer}.self_attn.o_proj.weight"][switch] = 0
        weights[f"model.layers.{layer}.mlp.down_proj.weight"][switch] = 0
    for name in ("gate_proj", "up_proj"):
        weights[f"model.layers.0.mlp.{name}.weight"][:, switch] = 1e30
    engine.load_weights(weights, version=1)
    prompts = make_prompts(6)
    for prompt in prompts:
        prompt.embeds[:, switch] = 0
    good = run(engine, prompts)
    prompts[2].embeds[:, switch] = 1
    samples = run(engine, prompts)
    assert [sample.failed is not None for sample in samples] == [index == 2 for index in range(6)]
    for index in (0, 1, 3, 4, 5):
        assert samples[index].token_ids.tolist() == good[index].token_ids.tolist()
        np.testing.assert_allclose(samples[index].logprobs, good[index].logprobs, atol=1e-5)


def test_no_progress_within_the_time_out_ends_the_engine_with_the_reason(
    build_engine: Callable[..., RolloutEngine], rollout_config: RolloutConfig, llama: Any, tmp_path: Path
) -> None:
    llama.config.save_pretrained(tmp_path)
    hurried = build_engine(tmp_path, dataclasses.replace(rollout_config, timeout_s=1e-6))
    hurried.load_weights(named_tensors(llama), version=0)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"none of 1 samples was finished within rollout\.timeout_s=1e-06 s"):
            run(hurried, make_prompts(1))
    with pytest.raises(EngineError, match="out of order"):
        hurried.assert_healthy()


def test_splitting_the_model_needs_gpus(rollout_config: RolloutConfig, llama: Any, tmp_path: Path) -> None:
    llama.config.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"rollout\.tensor_parallel=2 needs GPUs"):
        RolloutEngine(tmp_path, dataclasses.replace(rollout_config, tensor_parallel=2))


def test_an_engine_without_its_environment_does_not_start(
    rollout_config: RolloutConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    with pytest.raises(EngineError, match="rollout_env"):
        RolloutEngine(tmp_path, rollout_config)
