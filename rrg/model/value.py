"""PPO's value head: what reward a report will get, told at each of its tokens from what the language model knows then.

Contract: the head reads the language model's last hidden states and never teaches them: no gradient leaves it. It is a
part of the learner alone, neither saved with a policy nor sent to the rollout actors; a checkpoint's optimizer state
has it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ValueHead(nn.Module):
    """One hidden layer. All values are 0 at first, the same for every token.

    With lambda = 1 PPO then begins as REINFORCE with the batch's mean return as the baseline, which whitening takes
    off. With lambda < 1 it does not: until the head knows the mean return, mostly the last tokens would answer for
    it, and where it is below 0 every report would learn not to end.
    """

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(size, size)
            self.out = nn.Linear(size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Values [N], float32, of hidden states [N, H]."""
        read = states.detach().to(self.inner.weight.dtype)
        values: Tensor = self.out(F.gelu(self.inner(read)))[:, 0]
        return values.float()
