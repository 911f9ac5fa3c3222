"""Random micro-batches of log-probs in float64, for the tests of the objectives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from learner.objectives.loss import TokenBatch
from learner.objectives.reduction import Denominators

MAX_TOKENS = 9


def batch(rows: int = 6, tokens: int = 7, seed: int = 0, *, values: bool = False) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(rows, tokens, generator=generator, dtype=torch.float64)

    proximal = -3 * torch.rand(rows, tokens, generator=generator, dtype=torch.float64) - 0.1
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    advantages = torch.randn(rows, 1, generator=generator, dtype=torch.float64).expand(rows, tokens)
    whole = TokenBatch(
        current=proximal + normal(0.4),
        proximal=proximal,
        behaviour=proximal + normal(0.3),
        reference=proximal + normal(0.5),
        entropy=normal(1.0).abs(),
        advantages=advantages,
        mask=torch.arange(tokens) < lengths[:, None],
        fresh=(torch.arange(tokens) % 3 > 0).expand(rows, tokens),
    )
    return replace(whole, values=normal(1.0), old_values=normal(1.0), returns=normal(1.0)) if values else whole


def rows_of(source: TokenBatch, rows: list[int]) -> TokenBatch:
    return TokenBatch(**{name: None if part is None else part[rows] for name, part in vars(source).items()})


def denominators(of: TokenBatch) -> Denominators:
    return Denominators(float(of.mask.sum()), float(of.mask.any(-1).sum()), MAX_TOKENS)
