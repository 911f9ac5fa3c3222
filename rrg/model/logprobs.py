"""Log-probabilities of given tokens, without keeping the logits of a whole batch.

Contract: pure functions; probabilities are computed in float32 whatever the model's type.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits that may be alive at once: 2^24 float32 are 64 MiB.
_LOGITS_AT_ONCE: Final = 2**24


def token_logprobs(
    hidden: Tensor, head: nn.Module, targets: Tensor, temperature: float, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy (nats) of its distribution, softmax(head(hidden) / temperature).

    hidden [M, H], targets int64 [M] -> ([M], [M]), float32. The entropy carries a gradient only where
    `entropy_gradient` asks for it: that keeps two more [M, V]. With a big vocabulary the logits are made in chunks, and
    made again in the backward pass, so that memory does not grow with M.
    """
    vocabulary = head(hidden[:1]).shape[-1]
    chunk = max(1, _LOGITS_AT_ONCE // vocabulary)
    if len(hidden) <= chunk:
        return _chunk_logprobs(hidden, head, targets, temperature, entropy_gradient)
    parts = [
        checkpoint(_chunk_logprobs, part, head, wanted, temperature, entropy_gradient, use_reentrant=False)
        for part, wanted in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _chunk_logprobs(
    hidden: Tensor, head: nn.Module, targets: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float()
    if temperature != 1.0:
        logits = logits / temperature
    normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None])[:, 0] - normaliser
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        probabilities = (logits - normaliser[:, None]).exp_()
        entropy = normaliser - torch.linalg.vecdot(probabilities, logits)
    return logprobs, entropy
