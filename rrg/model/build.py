"""Making, saving and loading report policies.

Contract: `load_policy(save_policy(policy))` gives the same weights, in the same dtypes, and, bit for bit, the same
outputs. All parts of a policy are in `model.dtype`: learner, reference and rollouts compute alike. A saved policy
is a folder: `policy.json` (shapes, prompt, names of regions and findings), `extractor.safetensors`, `llm/` (a Hugging
Face folder that other engines load by path; of a LoRA model the base), `adapter/` (LoRA only, peft's format),
`backbone/` (trained backbones only) and `tokenizer/`.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel

from configs.schema import ModelConfig
from rrg.data.findings import FINDINGS
from rrg.data.regions import load_descriptions
from rrg.errors import UserError
from rrg.model.extractor import ExtractorShape, RegionExtractor
from rrg.model.llm import load_llm, read_llm, recompute_activations, recomputes_activations
from rrg.model.lora import add_lora, base_state_dict, is_lora, load_adapter, save_adapter
from rrg.model.policy import ReportPolicy
from rrg.model.precision import DTYPES, cast_weights
from rrg.model.prompts import PromptTemplate
from rrg.model.vision import load_backbone, load_saved_backbone, save_backbone

_FORMAT: Final = 3


def build_policy(
    cfg: ModelConfig,
    reports: Sequence[str],
    seed: int,
    *,
    grid: int,
    channels: int,
    cache_dir: str,
    target: str,
    image_size: int | None = None,
) -> ReportPolicy:
    """A new policy in eval mode: the extractor at random, the LLM from `cfg.llm.path` or small and at random.

    `grid` and `channels` are those of the image store; `cache_dir` (which keeps converted LLMs), `target` and
    `image_size` (which a trained backbone needs) those of the data's config. The same arguments give the same weights.
    `reports` (training texts) are used by the small LLM's tokenizer. Raises `UserError` where something that is
    configured can't be loaded or used.
    """
    dtype = _dtype(cfg.dtype)
    descriptions = load_descriptions(cfg.region_descriptions) if cfg.regions else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llm, tokenizer = load_llm(cfg.llm, reports, dtype, cache_dir)
        shape = ExtractorShape(
            patch_channels=channels,
            grid=grid,
            size=cfg.extractor_size,
            heads=cfg.extractor_heads,
            layers=cfg.extractor_layers,
            dropout=cfg.dropout,
            global_tokens=cfg.global_tokens,
            regions=len(descriptions),
            findings=len(FINDINGS),
            hidden=llm.config.hidden_size,
            gate=cfg.gate,
        )
        extractor = RegionExtractor(shape)
        extractor.set_token_scale(float(llm.get_input_embeddings().weight.detach().float().std()))
        extractor.to(dtype)
        if cfg.llm.train == "lora":
            add_lora(llm, cfg.llm.lora)
        backbone = None if cfg.backbone.train == "frozen" else load_backbone(cfg.backbone, image_size)
    if backbone is not None:
        cast_weights(backbone, dtype)
    prompt = PromptTemplate.of(cfg.prompt, target)
    policy = ReportPolicy(extractor, llm, tokenizer, prompt, descriptions, FINDINGS, backbone)
    policy.refresh_region_queries()
    return policy.eval()


def save_policy(policy: ReportPolicy, folder: Path) -> None:
    """Writes `policy` to `folder`; what another policy left there is replaced.

    The base of a LoRA policy never changes, and may be large: where `policy.llm.name_or_path` is the `llm/` of a saved
    policy that holds it, it is linked to and not written again. Afterwards the name is that of the new `llm/`; who
    renames the folder sets it anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "format": _FORMAT,
        "extractor": asdict(policy.extractor.shape),
        "prompt": asdict(policy.prompt),
        "regions": policy.region_descriptions,
        "findings": policy.findings,
        "gradient_checkpointing": recomputes_activations(policy.llm),
    }
    save_file(policy.extractor.state_dict(), folder / "extractor.safetensors")
    for part in ("adapter", "backbone"):
        shutil.rmtree(folder / part, ignore_errors=True)
    _save_llm(policy.llm, folder / "llm")
    if is_lora(policy.llm):
        save_adapter(policy.llm, folder / "adapter")
    if policy.backbone is not None:
        save_backbone(policy.backbone, folder / "backbone")
    policy.tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "policy.json").write_text(json.dumps(description, indent=2))
    share_weights(folder, like=folder / "policy.json")


def share_weights(folder: Path, like: Path) -> None:
    """Gives the weights in `folder` the mode of the file `like`: safetensors writes for the owner alone, whatever the
    umask. Those that are linked to belong to another policy, too."""
    for path in folder.rglob("*.safetensors"):
        if path.stat().st_nlink == 1:
            path.chmod(stat.S_IMODE(like.stat().st_mode))


def load_policy(folder: Path) -> ReportPolicy:
    """In eval mode. Raises `UserError` where the folder is no policy, one of another format, or damaged."""
    try:
        return _read_policy(folder)
    except SafetensorError as error:
        raise UserError(f"{folder}: a file of weights is damaged or cut off ({error}); take another copy") from error


def _read_policy(folder: Path) -> ReportPolicy:
    file = folder / "policy.json"
    if not file.is_file():
        raise UserError(f"{file} is missing: {folder} is not a policy saved by save_policy")
    description = json.loads(file.read_text())
    if description["format"] != _FORMAT:
        raise UserError(f"{file} has format {description['format']}, this version reads format {_FORMAT}")
    extractor = RegionExtractor(ExtractorShape(**description["extractor"]))
    tensors = load_file(folder / "extractor.safetensors")
    extractor.to(tensors["region_queries"].dtype).load_state_dict(tensors)
    llm = read_llm(folder / "llm", "auto", str(folder))
    if (folder / "adapter").is_dir():
        load_adapter(llm, folder / "adapter")
    if description["gradient_checkpointing"]:
        recompute_activations(llm)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    backbone = load_saved_backbone(folder / "backbone") if (folder / "backbone").is_dir() else None
    prompt = PromptTemplate(**description["prompt"])
    names = (description["regions"], description["findings"])
    return ReportPolicy(extractor, llm, tokenizer, prompt, *names, backbone).eval()


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"model.dtype={name!r} is unknown; one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _save_llm(llm: PreTrainedModel, folder: Path) -> None:
    """The LLM without adapters. The folder is made anew: its old files may be linked to from elsewhere."""
    source = Path(llm.name_or_path)
    linked = is_lora(llm) and _holds_base(source, llm)
    if linked and folder.exists() and folder.samefile(source):
        return
    shutil.rmtree(folder, ignore_errors=True)
    if linked:
        shutil.copytree(source, folder, copy_function=_link)
    else:
        llm.save_pretrained(folder, state_dict=base_state_dict(llm))
    llm.name_or_path = str(folder)


def _holds_base(source: Path, llm: PreTrainedModel) -> bool:
    """Whether `source` is the `llm/` of a saved policy and holds the base of `llm`.

    Another policy may have been saved there since: the first row of each tensor is looked at.
    """
    if not (source.parent / "policy.json").is_file():
        return False
    base = base_state_dict(llm)
    for file in source.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118  # not a mapping
                value = base.pop(name, None)
                if value is None or not _same_row(stored.get_slice(name), value):
                    return False
    return not base


def _same_row(stored: Any, value: torch.Tensor) -> bool:
    """`stored`: a slice of safetensors."""
    if value.dim() == 0 or tuple(stored.get_shape()) != tuple(value.shape):
        return False
    row = stored[:1]
    return row.dtype == value.dtype and torch.equal(row, value[:1].cpu())


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)
