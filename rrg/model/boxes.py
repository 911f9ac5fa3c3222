"""Boxes of regions: as maps over an image's patches, which train the attention, and read back from such maps.

Contract: `box_maps` and `attention_boxes` are inverse to each other: a box's map gives the box again, to 1/16 of a
patch. Boxes are x0, y0, x1, y1 as fractions of the image's width and height.

A box's map spreads its area over the patches by bilinear weights: each point counts for the centres of the four patches
around it. The plain share of each patch's area would not do for boxes about as wide as a patch: where such a box lies
inside of one, the share says nothing; bilinear weights keep its centre and its width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

# Boxes are found in steps of 1 / _STEPS of a patch, and are at least _NARROWEST steps wide.
_STEPS: Final = 16
_NARROWEST: Final = 4


def box_maps(boxes: Tensor, grid: int) -> Tensor:
    """The maps [..., grid * grid] of boxes [..., 4], each summing to one, row by row from the top left."""
    across = _profiles(boxes[..., 0] * grid, boxes[..., 2] * grid, grid)
    down = _profiles(boxes[..., 1] * grid, boxes[..., 3] * grid, grid)
    return (down[..., :, None] * across[..., None, :]).flatten(-2)


def attention_boxes(attention: Tensor, grid: int, first_patch: int = 0) -> Tensor:
    """The boxes [..., 4] that maps [..., N] show in the image whose patches begin at `first_patch`.

    Of each map's two marginals, the interval whose profile is nearest in Hellinger distance: on learnt maps, which peak
    somewhere inside of their box, its ends are truer than those of the nearest in squared distance, of quantiles or of
    moments. Attention outside of the image is left out; a map without any inside gives the whole image.
    """
    inside = attention[..., first_patch : first_patch + grid**2].detach().float()
    inside = inside.reshape(*inside.shape[:-1], grid, grid)
    x0, x1 = _interval(inside.sum(-2))
    y0, y1 = _interval(inside.sum(-1))
    return torch.stack([x0, y0, x1, y1], dim=-1)


def _profiles(low: Tensor, high: Tensor, grid: int) -> Tensor:
    """Weights [..., grid] of the cells' centres for intervals [low, high] (in cells), summing to one."""
    centre = torch.arange(grid, dtype=low.dtype, device=low.device) + 0.5
    weights = _tent_area(high[..., None] - centre) - _tent_area(low[..., None] - centre)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)


def _tent_area(x: Tensor) -> Tensor:
    """Area of the tent max(0, 1 - |t|) from -1 up to x."""
    x = x.clamp(-1.0, 1.0)
    return torch.where(x < 0, (1 + x) ** 2 / 2, 1 - (1 - x) ** 2 / 2)


def _interval(marginal: Tensor) -> tuple[Tensor, Tensor]:
    """The ends [...] as fractions of the interval that a marginal [..., grid] shows."""
    grid = marginal.shape[-1]
    ends, roots = (part.to(marginal.device) for part in _candidates(grid))
    marginal = torch.where(marginal.sum(-1, keepdim=True) > 0, marginal, 1.0)
    best = ends[(marginal.sqrt() @ roots.T).argmax(-1)]
    return best[..., 0], best[..., 1]


@lru_cache(maxsize=4)
def _candidates(grid: int) -> tuple[Tensor, Tensor]:
    """All intervals: ends as fractions [K, 2], and roots of their profiles [K, grid]."""
    low, high = torch.triu_indices(grid * _STEPS + 1, grid * _STEPS + 1, offset=_NARROWEST) / _STEPS
    return torch.stack([low, high], dim=-1) / grid, _profiles(low, high, grid).clamp_min(0).sqrt()
