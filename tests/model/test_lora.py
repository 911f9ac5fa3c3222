"""Adapters change nothing at first, train alone, and merge to what peft itself would give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from configs.schema import LoRAConfig
from rrg.errors import UserError
from rrg.model.lora import (
    adapted_layers,
    adapter_state_dict,
    add_lora,
    base_state_dict,
    is_lora,
    load_adapter,
    merged_state_dict,
    remove_lora,
    save_adapter,
    trainable_parameters,
)

IDS = torch.arange(12)[None] % 50


@pytest.fixture(params=["llama", "gpt2"])
def llm(request: pytest.FixtureRequest) -> Any:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    config = AutoConfig.for_model(request.param, intermediate_size=48, tie_word_embeddings=False, **size)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def adapted(llm: Any, **settings: Any) -> Any:
    """A copy with adapters that do something."""
    module = copy.deepcopy(llm)
    add_lora(module, LoRAConfig(rank=4, **settings))
    with torch.no_grad():
        for value in adapter_state_dict(module).values():
            value.normal_(std=0.3)
    return module


@torch.no_grad()
def logits(llm: Any) -> torch.Tensor:
    found: torch.Tensor = llm(IDS).logits
    return found


def plain(llm: Any, weights: dict[str, torch.Tensor]) -> Any:
    """A model that never had adapters, with these weights."""
    model = type(llm)(llm.config)
    model.load_state_dict(weights)
    return model.eval()


def test_new_adapters_change_nothing_and_are_all_that_is_trained(llm: Any) -> None:
    module = copy.deepcopy(llm)
    add_lora(module, LoRAConfig())
    assert torch.equal(logits(module), logits(llm))
    trained = trainable_parameters(module)
    assert {id(value) for value in trained} == {id(p) for p in module.parameters() if p.requires_grad}
    assert sum(value.numel() for value in trained) == sum(v.numel() for v in adapter_state_dict(module).values())
    assert len(trainable_parameters(llm)) == len(list(llm.parameters()))


def test_every_linear_layer_but_the_output_layer_has_one(llm: Any) -> None:
    parts = {name.rpartition(".")[2] for name in adapted_layers(adapted(llm))}
    llama = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert parts == (llama if llm.config.model_type == "llama" else {"c_attn", "c_proj", "c_fc"})


def test_merged_weights_are_those_of_peft_and_do_the_same(llm: Any, tmp_path: Path) -> None:
    module = adapted(llm)
    merged = merged_state_dict(module)
    assert merged.keys() == llm.state_dict().keys()
    assert not torch.allclose(logits(module), logits(llm), atol=1e-2)
    torch.testing.assert_close(logits(plain(llm, merged)), logits(module), atol=1e-5, rtol=1e-5)
    save_adapter(module, tmp_path)
    of_peft = PeftModel.from_pretrained(copy.deepcopy(llm), str(tmp_path)).merge_and_unload().state_dict()
    for name, value in of_peft.items():
        torch.testing.assert_close(merged[name], value, atol=1e-6, rtol=0)


def test_the_base_is_untouched_and_can_be_had_again(llm: Any) -> None:
    module = adapted(llm)
    for name, value in base_state_dict(module).items():
        assert torch.equal(value, llm.state_dict()[name])
    remove_lora(module)
    assert not is_lora(module)
    assert torch.equal(logits(module), logits(llm))


def test_a_saved_adapter_gives_the_same_bits_and_draws_no_random_number(llm: Any, tmp_path: Path) -> None:
    module = adapted(llm, alpha=10.0, targets="c_attn" if llm.config.model_type == "gpt2" else "q_proj, v_proj")
    save_adapter(module, tmp_path)
    again = copy.deepcopy(llm)
    state = torch.get_rng_state()
    load_adapter(again, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(again.eval()), logits(module))
    assert all(value.requires_grad for value in trainable_parameters(again))


def test_an_adapter_of_another_model_is_refused(llm: Any, tmp_path: Path) -> None:
    module = adapted(llm)
    save_adapter(module, tmp_path)
    smaller = copy.deepcopy(llm.config)
    smaller.num_hidden_layers = 1
    with pytest.raises(UserError, match="belongs to another"):
        load_adapter(AutoModelForCausalLM.from_config(smaller), tmp_path)


def test_bfloat16_adapters_merge_in_float32(llm: Any) -> None:
    module = adapted(llm).bfloat16()
    merged = merged_state_dict(module)
    exact = merged_state_dict(copy.deepcopy(module).float())
    for name, value in merged.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, exact[name].bfloat16())


def test_any_module_can_have_adapters() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(2, 6)
    before = module(x)
    add_lora(module, LoRAConfig(rank=2))
    assert torch.equal(module(x), before)
    assert set(adapted_layers(module)) == {"0", "2"}
    assert merged_state_dict(module).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("targets", ["query", "q_proj,nothing"])
def test_names_of_no_linear_layer_are_refused_with_those_that_there_are(llm: Any, targets: str) -> None:
    with pytest.raises(UserError, match=r"has no linear layer .*use \"all-linear\" or some of: .*(q_proj|c_attn)"):
        add_lora(llm, LoRAConfig(targets=targets))
