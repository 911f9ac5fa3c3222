"""The fixed inputs on which a publisher and a receiver of weights compare what their models give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from rrg.canary import Canary
from rrg.model.features import FeatureBatch, ImageBatch, PixelBatch

if TYPE_CHECKING:
    from rrg.model.policy import ReportPolicy

_TOKENS: Final = 24


@torch.no_grad()
def take_canary(policy: ReportPolicy) -> Canary:
    """What the weights of `policy` give: language model and extractor apart. In eval mode, whatever its mode was."""
    was_training = policy.training
    policy.eval()
    tokens = torch.randint(policy.vocab_size, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(policy.device)
    first = policy.llm.get_input_embeddings()(tokens[:, :1])
    rest = tokens[:, 1:]
    told = policy.completion_logprobs(first, rest.new_ones(1), rest, torch.ones_like(rest, dtype=torch.bool))
    embeds = extractor_canary(policy)
    policy.train(was_training)
    return Canary(tuple(tokens[0].tolist()), told.logprobs[0].cpu().numpy(), embeds)


@torch.no_grad()
def extractor_canary(policy: ReportPolicy) -> npt.NDArray[np.float32]:
    """The visual tokens [k, H] of `canary_images`."""
    regions = policy.extract(canary_images(policy))
    visual = torch.cat([regions.global_tokens, regions.gated_tokens()], dim=1)
    return visual[0].float().cpu().numpy()


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
