"""The policy that a run begins with: a new one, or the weights that `config.start` names.

Contract: the same on every rank. Weights that do not fit the configuration are refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from configs.schema import Config
from rrg.errors import UserError
from rrg.model.backbone import ImageStore
from rrg.model.build import build_policy, load_policy, save_policy
from rrg.model.lora import add_lora, is_lora
from rrg.model.policy import ReportPolicy
from rrg.model.precision import DTYPES


def initial_policy(config: Config, reports: Sequence[str], store: ImageStore) -> ReportPolicy:
    """A policy in eval mode; `reports` (training texts) are for the tokenizer of a small new one."""
    if config.start is not None:
        return started_policy(config, Path(config.start), store)
    return build_policy(
        config.model,
        reports,
        config.seed,
        grid=store.grid,
        channels=store.channels,
        target=config.data.target,
        cache_dir=config.data.cache_dir,
        image_size=config.data.image_size,
    )


def started_policy(config: Config, start: Path, store: ImageStore) -> ReportPolicy:
    """The warm start of the run directory `start`, or the policy in that folder.

    A policy without adapters gets new ones where the configuration trains those. Raises UserError where there is no
    policy or it does not fit.
    """
    warm_start = start / "warm_start"
    folder = warm_start if warm_start.is_dir() else start
    policy = load_policy(folder)
    misfits = list(_misfits(config, policy, store))
    if misfits:
        raise UserError(f"start={start}: this policy does not fit the configuration:\n  - " + "\n  - ".join(misfits))
    if config.model.llm.train == "lora" and not is_lora(policy.llm):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            add_lora(policy.llm, config.model.llm.lora)
    return policy


def write_once(policy: ReportPolicy, folder: Path) -> None:
    """Saves the policy unless `folder` is there: rollout actors wait for it, so it appears whole, by a rename."""
    if not folder.exists():
        aside = folder.with_suffix(".tmp")
        save_policy(policy, aside)
        aside.rename(folder)
        policy.llm.name_or_path = str(folder / "llm")


def _misfits(config: Config, policy: ReportPolicy, store: ImageStore) -> Iterator[str]:
    shape, model = policy.extractor.shape, config.model
    if (shape.grid, shape.patch_channels) != (store.grid, store.channels):
        yield (
            f"its images are {shape.grid}x{shape.grid} patches of {shape.patch_channels} channels, those of "
            f"model.backbone and data.image_size {store.grid}x{store.grid} of {store.channels}"
        )
    if (policy.backbone is None) != (model.backbone.train == "frozen"):
        trained = "frozen" if policy.backbone is None else "trained"
        yield f"model.backbone.train={model.backbone.train}, its backbone is {trained}"
    if is_lora(policy.llm) and model.llm.train != "lora":
        yield f"model.llm.train={model.llm.train}, but it has adapters: set model.llm.train=lora"
    if policy.llm.dtype != DTYPES[model.dtype]:
        yield f"model.dtype={model.dtype}, its weights are {str(policy.llm.dtype).removeprefix('torch.')}"
    if bool(policy.regions) != model.regions:
        yield f"model.regions={model.regions}, and it has {len(policy.regions)} regions"
