"""The fixed input on which a publisher and a receiver of weights compare what their extractors give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rrg.model.features import FeatureBatch, ImageBatch, PixelBatch

if TYPE_CHECKING:
    from rrg.model.policy import ReportPolicy


def canary_images(policy: ReportPolicy) -> ImageBatch:
    """One study of one frontal image with fixed random content, on the policy's device."""
    generator = torch.Generator().manual_seed(0)
    if policy.backbone is not None:
        side = policy.backbone.image_size
        pixels = torch.randint(256, (1, 1, side, side), generator=generator, dtype=torch.uint8)
        ones = torch.ones(1, 1, dtype=torch.bool)
        return PixelBatch(pixels, torch.zeros(1, 1, dtype=torch.long), ones).to(policy.device)
    shape = policy.extractor.shape
    values = torch.randn(1, shape.grid**2, shape.patch_channels, generator=generator)
    views = torch.zeros(1, shape.grid**2, dtype=torch.long)
    return FeatureBatch(values, views, torch.ones_like(views, dtype=torch.bool)).to(policy.device)
