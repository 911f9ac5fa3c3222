"""What passes from a study's X-rays to the extractor: patch features, or pixels for a backbone that is trained.

Contract: a study has `images * grid * grid` patches, image by image, each image row by row from its top left. Where
studies with different numbers of images share a batch, whole images are padded and the mask is False there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rrg.data.study import View

VIEW_CODES: Final[dict[View, int]] = {"frontal": 0, "lateral": 1}


@dataclass(frozen=True)
class PatchFeatures:
    """One study: `values` float32 [N, C] and `views` int64 [N], the code of each patch's view."""

    values: Tensor
    views: Tensor


@dataclass(frozen=True)
class FeatureBatch:
    """Several studies: `values` float32 [B, N, C], `views` int64 [B, N], `mask` bool [B, N]."""

    values: Tensor
    views: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device | str) -> FeatureBatch:
        return FeatureBatch(self.values.to(device), self.views.to(device), self.mask.to(device))


@dataclass(frozen=True)
class PixelBatch:
    """Several studies of up to V square grey images.

    `pixels` uint8 [B, V, S, S], `views` int64 and `mask` bool [B, V].
    """

    pixels: Tensor
    views: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> PixelBatch:
        return PixelBatch(self.pixels.to(device), self.views.to(device), self.mask.to(device))


# Pixels where the policy has a backbone of its own (one that is trained), features where the backbone is frozen.
ImageBatch = FeatureBatch | PixelBatch


def collate_features(items: Sequence[PatchFeatures]) -> FeatureBatch:
    """Pads studies to the largest number of patches among them."""
    values = pad_sequence([item.values for item in items], batch_first=True)
    views = pad_sequence([item.views for item in items], batch_first=True)
    lengths = torch.tensor([len(item.values) for item in items])
    mask = torch.arange(values.shape[1]) < lengths[:, None]
    return FeatureBatch(values, views, mask)
