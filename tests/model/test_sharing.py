"""Completions that share a prompt: the numbers and gradients of each prompt and completion on its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from configs.schema import LoRAConfig
from rrg.model.completions import states_of_each, states_of_groups
from rrg.model.llm import recompute_activations
from rrg.model.lora import adapter_state_dict, add_lora
from rrg.model.sharing import Layout, share_prompts, shares_prompts

HIDDEN, WORDS = 32, 50
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_inner": 48},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 12},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "mistral, a window": {"num_key_value_heads": 2, "sliding_window": 5},
    "qwen2, a window": {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
}
# Prompts of different lengths, with different numbers of completions of different lengths.
PROMPTS = (7, 3, 5)
COUNTS = (3, 1, 2)
LENGTHS = (4, 1, 9, 6, 2, 5)


def model(family: str, **settings: Any) -> PreTrainedModel:
    size = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family.split(",")[0], vocab_size=WORDS, **size, **FAMILIES[family], **settings)
    torch.manual_seed(0)
    llm: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    share_prompts(llm)
    with torch.no_grad():
        for parameter in llm.parameters():  # so that what is attended to matters
            parameter.add_(0.1 * torch.randn_like(parameter))
    return llm.double()  # so that the gaps are those of the method


def batch(prompts: tuple[int, ...] = PROMPTS, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts padded with noise, which must not matter; ids and mask of completions."""
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(len(prompts), max(prompts), HIDDEN, generator=generator, dtype=torch.float64)
    ids = torch.randint(WORDS, (len(lengths), max(lengths)), generator=generator)
    return embeds, ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def both(
    llm: PreTrainedModel,
    prompts: tuple[int, ...] = PROMPTS,
    counts: tuple[int, ...] = COUNTS,
    lengths: tuple[int, ...] = LENGTHS,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Log-probs of each completion alone, and of all in one row, with all gradients."""
    embeds, ids, mask = batch(prompts, lengths)
    ends, number = torch.tensor(prompts), torch.tensor(counts)
    weight = torch.linspace(-1.0, 1.0, int(mask.sum()), dtype=torch.float64)

    def told(shared: bool) -> dict[str, Tensor]:
        llm.zero_grad()
        start = embeds.clone().requires_grad_()
        if shared:
            states = states_of_groups(llm, start, ends, number, ids, mask)
        else:
            apart = start.repeat_interleave(number, dim=0), ends.repeat_interleave(number)
            states = states_of_each(llm, *apart, ids, mask)
        logprobs = llm.get_output_embeddings()(states).log_softmax(-1).gather(-1, ids[mask][:, None])[:, 0]
        (logprobs * weight).sum().backward()
        gradients = {name: value.grad for name, value in llm.named_parameters() if value.grad is not None}
        assert start.grad is not None
        return {"logprobs": logprobs.detach(), "prompts": start.grad} | {n: g.clone() for n, g in gradients.items()}

    return told(shared=False), told(shared=True)


def assert_equal(found: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    apart, shared = found
    assert apart.keys() == shared.keys()
    for name, value in apart.items():
        assert torch.allclose(shared[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max())), name


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_of_one_prompt_give_the_log_probs_and_gradients_of_each_alone(family: str) -> None:
    llm = model(family)
    assert shares_prompts(llm)
    apart, shared = both(llm)
    assert len(apart) > len(list(llm.parameters())), "everything learns"
    assert_equal((apart, shared))


def test_completions_of_one_token_read_nothing() -> None:
    assert_equal(both(model("llama"), lengths=(1,) * len(LENGTHS)))


def test_a_study_alone_and_prompts_of_one_length_need_no_padding() -> None:
    assert_equal(both(model("qwen2"), prompts=(6,), counts=(6,)))
    assert_equal(both(model("gpt2"), prompts=(4, 4), counts=(1, 1), lengths=(3, 3)))


def test_layers_that_are_computed_again_give_the_same() -> None:
    llm = model("llama")
    recompute_activations(llm)
    assert_equal(both(llm))


def test_adapters_learn_the_same() -> None:
    llm = model("mistral")
    add_lora(llm, LoRAConfig(rank=4))
    with torch.no_grad():
        for value in adapter_state_dict(llm).values():
            value.normal_(std=0.3)
    llm.double()
    apart, shared = both(llm)
    assert any("lora_A" in name for name in apart)
    assert_equal((apart, shared))


def test_a_prompt_and_its_completions_are_in_the_row_once_and_nothing_else() -> None:
    prompt = torch.arange(max(PROMPTS)) < torch.tensor(PROMPTS)[:, None]
    read = torch.arange(8) < torch.tensor(LENGTHS)[:, None] - 1
    study = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    layout = Layout.of(prompt, read, study)
    tokens = sum(PROMPTS) + sum(LENGTHS) - len(LENGTHS)
    assert layout.positions.shape == (1, tokens)
    places = torch.cat([layout.prompts[prompt], layout.completions[read]])
    assert places.tolist() == list(range(tokens))
    assert layout.positions[0, layout.completions[2, 0]] == PROMPTS[0], "the third completion follows the first prompt"


def test_a_row_without_a_layout_is_what_it_is_to_pytorchs_attention() -> None:
    """So the warm start is bit for bit what it was."""
    llm = model("mistral, a window")
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(llm.config), attn_implementation="sdpa").eval().double()
    plain.load_state_dict(llm.state_dict())
    assert plain.config._attn_implementation != llm.config._attn_implementation
    ids = torch.arange(12)[None]
    assert torch.equal(plain(ids).logits, llm(ids).logits)


def test_other_families_keep_their_attention() -> None:
    config = AutoConfig.for_model(
        "opt", vocab_size=WORDS, hidden_size=HIDDEN, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=HIDDEN
    )
    llm = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    share_prompts(llm)
    assert not shares_prompts(llm)
    assert llm.config._attn_implementation == "sdpa"
