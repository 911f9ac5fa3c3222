"""Making, saving and loading report policies.

Contract: `load_policy(save_policy(policy))` gives the same weights and the same outputs. A saved policy is a folder:
`policy.json` (shapes, instruction, names of regions and findings), `extractor.safetensors`, `llm/` (a Hugging Face
folder that other engines load by path) and `tokenizer/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from configs.schema import LLMConfig, ModelConfig
from rrg.data.findings import FINDINGS
from rrg.data.regions import DESCRIPTIONS
from rrg.errors import UserError
from rrg.model.backbone import patch_channels, patch_grid
from rrg.model.extractor import ExtractorShape, RegionExtractor
from rrg.model.policy import ReportPolicy
from rrg.model.tokenizer import train_tokenizer

_FORMAT: Final = 1
_MAX_POSITIONS: Final = 1024


def build_policy(cfg: ModelConfig, reports: Sequence[str], seed: int, *, image_size: int) -> ReportPolicy:
    """A new policy in eval mode: the extractor at random, the LLM from `cfg.llm.path` or small and at random.

    The same arguments give the same weights. `reports` (training texts) are used by the small LLM's tokenizer.
    Raises `UserError` where the configured LLM can't be loaded or used.
    """
    dtype = _dtype(cfg.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if cfg.llm.path is None:
            tokenizer = train_tokenizer(reports, cfg.llm.vocab_size)
            llm = _small_llama(cfg.llm, tokenizer)
        else:
            llm, tokenizer = _pretrained(cfg.llm.path)
        shape = ExtractorShape(
            patch_channels=patch_channels(cfg.backbone),
            grid=patch_grid(image_size),
            size=cfg.extractor_size,
            heads=cfg.extractor_heads,
            layers=cfg.extractor_layers,
            dropout=cfg.dropout,
            global_tokens=cfg.global_tokens,
            regions=len(DESCRIPTIONS),
            findings=len(FINDINGS),
            hidden=llm.config.hidden_size,
        )
        extractor = RegionExtractor(shape)
        extractor.set_token_scale(float(llm.get_input_embeddings().weight.detach().float().std()))
    policy = ReportPolicy(extractor, llm.to(dtype), tokenizer, cfg.instruction, DESCRIPTIONS, FINDINGS)
    policy.refresh_region_queries()
    return policy.eval()


def save_policy(policy: ReportPolicy, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "format": _FORMAT,
        "extractor": asdict(policy.extractor.shape),
        "instruction": policy.instruction,
        "regions": policy.region_descriptions,
        "findings": policy.findings,
    }
    (folder / "policy.json").write_text(json.dumps(description, indent=2))
    save_file(policy.extractor.state_dict(), folder / "extractor.safetensors")
    policy.llm.save_pretrained(folder / "llm")
    policy.tokenizer.save_pretrained(folder / "tokenizer")


def load_policy(folder: Path) -> ReportPolicy:
    """In eval mode. Raises `UserError` where the folder is no policy or one of another format."""
    file = folder / "policy.json"
    if not file.is_file():
        raise UserError(f"{file} is missing: {folder} is not a policy saved by save_policy")
    description = json.loads(file.read_text())
    if description["format"] != _FORMAT:
        raise UserError(f"{file} has format {description['format']}, this version reads format {_FORMAT}")
    extractor = RegionExtractor(ExtractorShape(**description["extractor"]))
    extractor.load_state_dict(load_file(folder / "extractor.safetensors"))
    llm = AutoModelForCausalLM.from_pretrained(folder / "llm", dtype="auto", attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    names = (description["instruction"], description["regions"], description["findings"])
    return ReportPolicy(extractor, llm, tokenizer, *names).eval()


def _dtype(name: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise UserError(f"model.dtype={name!r} is unknown; one of {', '.join(dtypes)}")
    return dtypes[name]


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
    return LlamaForCausalLM(config)


def _pretrained(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        llm = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"model.llm.path={path}: no usable causal language model there ({error})") from error
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
