"""DeepSpeed as this project runs it: settings, process group, engine. Imported only inside a rank's process.

Contract: the caller owns the accumulation boundary (any number of `backward`, one `step`), sets the learning rate
before every step, and divides losses by global denominators; DeepSpeed averages the gradients over the ranks, so
`backward_sum` scales them back to sums. With one rank or many, and at any ZeRO stage, the gradient is the same up to
rounding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import FileStore, TCPStore  # type: ignore[attr-defined]

from configs.schema import LearnerConfig
from rrg.errors import RunStoppedError

# Of learner.timeout_s.
_COLLECTIVE_SHARE = 0.8


def device_of(learner: LearnerConfig) -> torch.device:
    """The device of a rank; Ray shows each rank only its own GPU."""
    return torch.device("cuda", 0) if learner.gpus_per_rank > 0 else torch.device("cpu")


Meeting = Path | tuple[str, int]
"""Where ranks meet: a file that all see, or host and port of rank 0, which then listens on all of its interfaces."""


def join_process_group(learner: LearnerConfig, meeting: Meeting, *, rank: int, world_size: int) -> None:
    """Join the ranks' process group (gloo on CPUs, nccl on GPUs). Blocks until all have come or the time is over.

    In a collective call a rank waits for the others a little shorter than the driver waits for it: so those that wait
    say so in time, and the silent one is the one that hangs.
    """
    import deepspeed

    # Serves inference only, and its build takes 30 s and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0")
    backend = "nccl" if learner.gpus_per_rank > 0 else "gloo"
    timeout = timedelta(seconds=_COLLECTIVE_SHARE * learner.timeout_s)
    store: FileStore | TCPStore
    if isinstance(meeting, Path):
        store = FileStore(str(meeting), world_size)
        store.set_timeout(timeout)
    else:
        store = TCPStore(*meeting, world_size, is_master=rank == 0, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained with `lr_scale` times the learning rate of the step."""

    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0


def make_engine(
    module: nn.Module,
    groups: Sequence[ParameterGroup],
    learner: LearnerConfig,
    *,
    weight_decay: float,
    bf16: bool,
    universal: bool = False,
) -> Any:
    """A DeepSpeed engine with a fresh AdamW over `groups` of `module`'s parameters; the others are frozen.

    At ZeRO 3 the parameters are in pieces afterwards (`learner.gathered` puts them together). A `universal` engine can
    load checkpoints that were converted for another number of ranks, and no others.
    """
    import deepspeed

    trained = [{"params": list(g.parameters), "lr_scale": g.lr_scale} for g in groups if g.parameters]
    kept = {id(parameter) for group in groups for parameter in group.parameters}
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    beta1, beta2 = learner.betas
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": learner.grad_clip,
        "zero_optimization": _zero(learner),
        # torch's AdamW on the host: DeepSpeed's own has to be compiled where it runs.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "checkpoint": {"load_universal": universal},
        **({"bf16": {"enabled": True}} if bf16 else {}),
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def _zero(learner: LearnerConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.offload:
        host = {"device": "cpu", "pin_memory": learner.gpus_per_rank > 0}
        settings["offload_optimizer"] = host
        if learner.zero_stage == 3:
            settings["offload_param"] = host
    return settings


def backward_sum(engine: Any, loss: Tensor) -> None:
    """Accumulate the gradient of a loss whose sum over micro-batches and ranks is the loss of the step."""
    engine.backward(loss * engine.world_size, scale_wrt_gas=False)


def optimizer_step(engine: Any, lr: float) -> dict[str, float]:
    """Clip, step and clear with learning rate `lr`; returns `lr` and, where DeepSpeed knows it, `grad_norm`.

    DeepSpeed reports no norm at ZeRO stage 0 in float32. Raises RunStoppedError, on all ranks, where the gradient was
    not finite: the parameters are of no more use then.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    engine.step()
    norm = engine.get_global_grad_norm()
    if not (_parameters_finite(engine) if norm is None else 0.0 <= float(norm) < math.inf):  # -1: DeepSpeed's own mark
        raise RunStoppedError("the gradient is not finite (the learning rate, learner.grad_clip, model.dtype)")
    return {"lr": lr} if norm is None else {"lr": lr, "grad_norm": float(norm)}


def _parameters_finite(engine: Any) -> bool:
    trained = [parameter.detach() for group in engine.optimizer.param_groups for parameter in group["params"]]
    return bool(torch.stack([parameter.isfinite().all() for parameter in trained]).all())


def reduce_over_ranks(values: dict[str, float], operation: str, device: torch.device) -> dict[str, float]:
    """`values` added ("sum") or compared ("max") over all ranks; every rank passes the same keys in the same order."""
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(packed, op={"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[operation])
    return dict(zip(values, packed.tolist(), strict=True))


def add_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks."""
    total = values.clone()
    dist.all_reduce(total)
    return total
