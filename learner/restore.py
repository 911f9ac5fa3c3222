"""Putting a DeepSpeed checkpoint of what is trained back under an engine, with as many ranks as there are now."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from rrg.errors import UserError

TAG = "deepspeed"
_UNIVERSAL_TAG = "universal"


def written_by(checkpoint: Path) -> int | None:
    """How many ranks wrote the checkpoint; None where it does not matter (ZeRO 0 keeps nothing in pieces)."""
    return len(list((checkpoint / TAG).glob("*zero_pp_rank_*_optim_states.pt"))) or None


def load_engine(engine: Any, checkpoint: Path, aside: Path, *, rank: int, universal: bool) -> None:
    """Loads parameters and optimizer; with `universal` (as the engine was made) from as many ranks as ever.

    The converted checkpoint takes the folder `aside`, for a while. Raises UserError where the checkpoint does not fit.
    """
    folder, tag = checkpoint, TAG
    if universal:
        if rank == 0:
            _convert(checkpoint / TAG, aside / _UNIVERSAL_TAG)
        dist.barrier()
        folder, tag = aside, _UNIVERSAL_TAG
    with _optimizer_mended(engine) if universal else nullcontext():
        path, _ = engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False, custom_load_fn=load_trained)
    if path is None:
        raise UserError(f"{checkpoint}/{TAG} holds nothing for {dist.get_world_size()} learner rank(s)")
    if universal:
        dist.barrier()
        if rank == 0:
            shutil.rmtree(aside)


@contextmanager
def _optimizer_mended(engine: Any) -> Iterator[None]:
    """Undoes what DeepSpeed's loading of a universal checkpoint does wrong at ZeRO 3.

    All parameter groups get the settings of the first (so its scale of the learning rate), and all states the same
    tensor that counts the steps, which each of them would move on by one in every step.
    """
    optimizer = engine.optimizer.optimizer  # torch's, which DeepSpeed's own steps
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    yield
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update(kept)
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()


def _convert(source: Path, target: Path) -> None:
    """DeepSpeed's own conversion to a checkpoint that any number of ranks can load."""
    from deepspeed.checkpoint.ds_to_universal import main

    shutil.rmtree(target.parent, ignore_errors=True)
    target.mkdir(parents=True)
    main(
        Namespace(
            input_folder=str(source),
            output_folder=str(target),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


def load_trained(src: dict[str, Tensor], dst: nn.Module) -> None:
    """Loads `src` into `dst`; what is frozen in `dst` came with the policy and may be missing.

    Raises UserError where `src` lacks something that `dst` trains, or has something that `dst` does not know.
    """
    lacking = sorted({name for name, value in dst.named_parameters() if value.requires_grad} - src.keys())
    if lacking:
        raise UserError(f"the checkpoint lacks {len(lacking)} trained tensors, the first is {lacking[0]}")
    unknown = dst.load_state_dict(src, strict=False).unexpected_keys
    if unknown:
        raise UserError(f"the checkpoint has {len(unknown)} tensors that the policy has not, the first is {unknown[0]}")
