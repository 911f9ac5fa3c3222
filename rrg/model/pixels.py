"""What every image backbone has in common: how pixels go in, and in which order patch features come out.

Contract: a backbone gives one flat row an image, its levels one after the other, each from the top left row by row
with the channels last. `PatchLevels.expand` is the only way from rows to patches, for stored rows and fresh ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PatchLevels:
    """Maps of one square image of `image_size` pixels: (patches a side, channels) of each level, the finest first.

    Patches a side of the finest level must be a multiple of the others'.
    """

    image_size: int
    levels: tuple[tuple[int, int], ...]

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.levels[0][0]

    @property
    def channels(self) -> int:
        """Width of one patch, all levels together."""
        return sum(channels for _, channels in self.levels)

    @property
    def row(self) -> int:
        """Numbers that are stored for an image."""
        return sum(grid * grid * channels for grid, channels in self.levels)

    def expand(self, rows: Tensor) -> Tensor:
        """Rows [M, row] -> patches [M, grid * grid, channels]; a coarse patch is repeated for the finer ones in it."""
        parts = torch.split(rows, [grid * grid * channels for grid, channels in self.levels], dim=1)
        maps = []
        for part, (grid, channels) in zip(parts, self.levels, strict=True):
            each = self.grid // grid
            level = part.reshape(-1, grid, grid, channels)
            maps.append(level.repeat_interleave(each, dim=1).repeat_interleave(each, dim=2) if each > 1 else level)
        return torch.cat(maps, dim=-1).flatten(1, 2)


class Normalise(nn.Module):
    """Grey bytes to what a backbone was trained on: `scale` makes them numbers, the same for each of `channels`, of
    which `mean` is taken off and which are divided by `std` (one value, or one a channel)."""

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float], scale: float) -> None:
        super().__init__()
        # No buffers: they would be rounded where a module is cast to bfloat16, but not where another process has it in
        # float32.
        self._mean = _each(mean, channels, scale)
        self._std = _each(std, channels, scale)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [M, S, S] -> float32 [M, channels, S, S]."""
        mean, std = (torch.tensor(part, device=pixels.device).view(-1, 1, 1) for part in (self._mean, self._std))
        return (pixels[:, None].float() - mean) / std


def _each(values: Sequence[float], channels: int, scale: float) -> list[float]:
    """One value a channel, in bytes."""
    return [value / scale for value in values] * (channels if len(values) == 1 else 1)
