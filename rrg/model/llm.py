"""The causal language model of a policy: from scratch, from Hugging Face, or out of a Python package.

Contract: whatever its source, the model's output layer has weights of its own and its logits are this layer's outputs
and nothing else, so that the learner, the rollout engine and a plain Hugging Face folder give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from configs.schema import LLMConfig
from rrg.errors import UserError
from rrg.model import gguf
from rrg.model.precision import cast_weights
from rrg.model.sharing import share_prompts
from rrg.model.tokenizer import train_tokenizer

_MAX_POSITIONS: Final = 1024


def load_llm(
    cfg: LLMConfig, reports: Sequence[str], dtype: torch.dtype, cache_dir: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `cfg` describes, in `dtype` and eval mode, without adapters, and its tokenizer.

    A small Llama draws its weights from torch's generator; its tokenizer is trained on `reports`. `cache_dir` keeps
    converted models. Raises UserError where the model can't be loaded or used.
    """
    if cfg.path is None:
        tokenizer = train_tokenizer(reports, cfg.vocab_size)
        llm = _small_llama(cfg, tokenizer)
        cast_weights(llm, dtype)
    else:
        folder = str(gguf.converted_folder(cfg.path, cache_dir)) if cfg.path.startswith(gguf.PREFIX) else cfg.path
        llm, tokenizer = _pretrained(folder, cfg.path, dtype)
    if cfg.gradient_checkpointing:
        recompute_activations(llm)
    return llm.eval(), tokenizer


def read_llm(folder: str | Path, dtype: torch.dtype | Literal["auto"], where: str) -> PreTrainedModel:
    """The causal language model in `folder`, every tensor from its files; "auto": in the dtype that it was saved in.

    Raises UserError, which begins with `where`, if there is none, or it lacks a tensor (transformers would draw it at
    random). A tied output layer needs none.
    """
    try:
        llm, loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: no usable causal language model there ({error})") from error
    missing = set(loaded["missing_keys"])
    if llm.config.tie_word_embeddings:
        head = llm.get_output_embeddings().weight
        missing -= {name for name, value in llm.named_parameters(remove_duplicate=False) if value is head}
    if missing:
        raise UserError(
            f"{where}: the checkpoint has no weights for {len(missing)} tensors of a {type(llm).__name__}, the first "
            f"is {min(missing)}; it is damaged, or of another kind than its config.json says"
        )
    share_prompts(llm)
    plain: PreTrainedModel = llm
    return plain


class _Recomputed:
    """A layer's forward pass that keeps its inputs only, and is done again in the backward pass."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        return checkpoint(self._forward, *args, use_reentrant=False, **kwargs)


def recompute_activations(llm: PreTrainedModel) -> None:
    """Gradient checkpointing of every layer, wherever gradients are wanted.

    Not by transformers' own switch, which acts in training mode only: RL learns in eval mode, without dropout.
    Raises UserError for a model without layers of this kind.
    """
    layers = [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"model.llm.gradient_checkpointing: a {llm.config.model_type} can't recompute its layers; set it to false"
        )
    for layer in layers:
        layer.forward = _Recomputed(layer.forward)


def recomputes_activations(llm: PreTrainedModel) -> bool:
    """Whether `recompute_activations` was applied."""
    return any(isinstance(module.forward, _Recomputed) for module in llm.modules())


def _small_llama(cfg: LLMConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=cfg.hidden_size,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        num_key_value_heads=cfg.num_heads,
        intermediate_size=cfg.intermediate_size,
        max_position_embeddings=_MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    llm = LlamaForCausalLM(config)
    share_prompts(llm)
    return llm


def _pretrained(folder: str, path: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`folder` is where to load from, `path` what the user asked for."""
    llm = read_llm(folder, dtype, f"model.llm.path={path}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"model.llm.path={path}: no usable tokenizer there ({error})") from error
    rows = len(llm.get_input_embeddings().weight)
    ids = 1 + max(tokenizer.get_vocab().values())
    if ids > rows:
        raise UserError(
            f"model.llm.path={path}: its tokenizer has {ids} tokens, and the model embeddings for {rows}: it belongs "
            "to another model, or tokens were added to it; save the model after resize_token_embeddings"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.llm.path={path}: its tokenizer has no end-of-sequence token, reports could not end")
    _untie(llm)
    _check_head(llm, path)
    return llm, tokenizer


def _untie(llm: PreTrainedModel) -> None:
    """Gives the output layer its own weights: engines that repack it would miss updates through a shared tensor."""
    if llm.config.tie_word_embeddings:
        head = llm.get_output_embeddings()
        head.weight = nn.Parameter(llm.get_input_embeddings().weight.detach().clone())
        llm.config.tie_word_embeddings = False


@torch.no_grad()
def _check_head(llm: PreTrainedModel, path: str) -> None:
    """Refuses models that do more to their logits than one output layer (scaling, soft caps)."""
    ids = torch.arange(4)[None] % llm.config.vocab_size
    states = llm.base_model(input_ids=ids, use_cache=False).last_hidden_state
    if not torch.allclose(llm.get_output_embeddings()(states), llm(input_ids=ids).logits, atol=1e-4):
        raise UserError(
            f"model.llm.path={path}: a {llm.config.model_type} scales or caps its logits, which log-probabilities here"
            " do not follow; use a Llama, Qwen, Mistral or GPT-2 style model"
        )
