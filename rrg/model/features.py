"""Patch features of a study's X-rays: the containers that pass from the backbone to the extractor.

Contract: a study has `images * grid * grid` patches, image by image, each image row by row from its top left. Where
studies with different numbers of images share a batch, whole images are padded and `mask` is False there.
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


def collate_features(items: Sequence[PatchFeatures]) -> FeatureBatch:
    """Pads studies to the largest number of patches among them."""
    values = pad_sequence([item.values for item in items], batch_first=True)
    views = pad_sequence([item.views for item in items], batch_first=True)
    lengths = torch.tensor([len(item.values) for item in items])
    mask = torch.arange(values.shape[1]) < lengths[:, None]
    return FeatureBatch(values, views, mask)
