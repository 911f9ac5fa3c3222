"""How the losses of tokens become the loss of a mini-batch.

Contract: denominators are global over the micro-batches and ranks of a mini-batch, so that the split changes neither
the loss nor the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Denominators:
    """Of a whole mini-batch: its tokens and reports that count, and the most tokens that a report may have."""

    tokens: float
    sequences: float
    max_tokens: int


def token_weights(reduction: str, mask: Tensor, denominators: Denominators) -> Tensor:
    """Weights [B, T], float64, 0 where `mask` is false: (weights * token losses) of a mini-batch sum to its loss.

    - "tokens": the mean over all tokens (Yu et al. 2025, DAPO, arXiv:2503.14476, eq. 8);
    - "sequences": the mean over reports of the mean over their tokens (Shao et al. 2024, arXiv:2402.03300, eq. 3);
    - "constant": over reports * max_tokens, whatever the lengths (Liu et al. 2025, Dr. GRPO, arXiv:2503.20783).

    Raises ValueError for any other reduction.
    """
    counted = mask.double()
    if reduction == "tokens":
        return counted / denominators.tokens
    if reduction == "sequences":
        return counted / counted.sum(-1, keepdim=True).clamp_min(1.0) / denominators.sequences
    if reduction == "constant":
        return counted / (denominators.sequences * denominators.max_tokens)
    raise ValueError(f"no reduction {reduction!r}: tokens, sequences or constant")
