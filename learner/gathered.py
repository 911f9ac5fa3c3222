"""ZeRO 3 keeps every parameter in pieces, one a rank: a whole copy of the policy for what needs all of it at once.

Contract: rank 0 keeps a plain copy of the policy, which has no part in training; `Whole.policy` brings it up to date,
a parameter at a time, so that nothing but the copy takes more memory than the pieces. Below ZeRO 3 the policy is whole
already and no copy is made.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rrg.model.policy import ReportPolicy


class Whole:
    """Made before the engine of `policy`; `policy()` is a collective call, of every rank."""

    def __init__(self, policy: ReportPolicy, *, pieces: bool, rank: int) -> None:
        self._trained = policy
        self._pieces = pieces
        # The one that can be saved and run: rank 0's copy, or the policy itself.
        self.plain = copy.deepcopy(policy) if pieces and rank == 0 else policy

    def policy(self) -> ReportPolicy:
        """The policy with all of its weights on rank 0; on the others the one in pieces, which is not to be run."""
        if self._pieces:
            self._collect()
        return self.plain

    @torch.no_grad()
    def _collect(self) -> None:
        import deepspeed

        whole = dict(self.plain.named_parameters())
        for name, piece in self._trained.named_parameters():
            with deepspeed.zero.GatheredParameters([piece]):
                if self.plain is not self._trained:
                    whole[name].copy_(piece)
        if self.plain is not self._trained:
            for name, value in self._trained.named_buffers():
                self.plain.get_buffer(name).copy_(value)
            self.plain.train(self._trained.training)
