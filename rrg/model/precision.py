"""Numbers of 32 or 16 bits: what of a module is rounded, and what never is.

Contract: what is saved and trained (parameters, persistent buffers) is in `model.dtype`. What is made anew with each
model, as the frequencies of rotary positions, stays in float32, as other engines have it: rounded to bfloat16, they
turn a query at position 300 by up to half a radian too far.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Puts the state dict of `module` into `dtype`, and nothing else."""
    for value in module.state_dict(keep_vars=True).values():
        if value.is_floating_point() and value.dtype != dtype:
            value.data = value.data.to(dtype)


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Gives `module` its buffers back afterwards: DeepSpeed's bf16 casts every one."""
    kept = [(part, name, value) for part in module.modules() for name, value in part.named_buffers(recurse=False)]
    yield
    for part, name, value in kept:
        setattr(part, name, value)
