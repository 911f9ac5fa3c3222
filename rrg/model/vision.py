"""The image backbone as a module: frozen for stored features, or trained as a part of the policy.

Contract: `VisionBackbone` gives the same patches for the same image, frozen or trained, up to the float16 of stored
ones. Batch normalisation stays in eval mode in training too: the statistics of a micro-batch of few X-rays are noise,
they would make a report's probability depend on the studies beside it, and rollouts, which use the stored ones, would
sample from another policy than the one that is trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from configs.schema import BackboneConfig, LoRAConfig
from rrg.errors import UserError
from rrg.model import efficientnet
from rrg.model.features import FeatureBatch, PixelBatch
from rrg.model.huggingface import PROCESSOR_FILE, HuggingFaceNetwork, VisionModel, find_model
from rrg.model.lora import add_lora, base_state_dict, load_adapter, save_adapter, trainable_parameters
from rrg.model.pixels import PatchLevels
from rrg.model.precision import DTYPES, cast_weights

_ABOUT: Final = "backbone.json"
_WEIGHTS: Final = "model.safetensors"
_ADAPTER: Final = "adapter"


@dataclass(frozen=True)
class BackboneSpec:
    """Which backbone, at which image size; `model` is None for EfficientNet-lite0. Cheap: no weights are read."""

    levels: PatchLevels
    model: VisionModel | None

    @staticmethod
    def of(path: str, image_size: int | None) -> BackboneSpec:
        """`image_size`: `data.image_size`. Raises `UserError` where the two can't be used."""
        if path == efficientnet.NAME:
            return BackboneSpec(efficientnet.levels(image_size), None)
        model = find_model(path, image_size)
        return BackboneSpec(model.levels, model)

    def fingerprint(self) -> str:
        """Names the features: changes whenever stored ones would. Reads the weights' files."""
        if self.model is None:
            return f"{efficientnet.NAME}-{efficientnet.fingerprint(self.levels.image_size)}"
        return f"{self.model.config.model_type}-{self.model.fingerprint()}"


class VisionBackbone(nn.Module):
    """In eval mode and frozen at first; `train_all` or `train_adapters` make it trainable.

    `trained` says how: "frozen", "full" or "lora" (an optimizer may change `requires_grad` afterwards).
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.trained = "frozen"
        self.network: efficientnet.EfficientNetLite0 | HuggingFaceNetwork
        if spec.model is None:
            self.network = efficientnet.EfficientNetLite0(spec.levels.image_size)
        else:
            self.network = HuggingFaceNetwork(spec.model)
        self.requires_grad_(False)
        self.eval()

    @property
    def image_size(self) -> int:
        return self.spec.levels.image_size

    @property
    def grid(self) -> int:
        return self.spec.levels.grid

    @property
    def channels(self) -> int:
        return self.spec.levels.channels

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def trained_parameters(self) -> list[nn.Parameter]:
        """What an optimizer gets: the adapters, or every parameter that the patches depend on (a mask token, or a norm
        behind the pooling layer, would only decay)."""
        if self.trained == "lora":
            return trainable_parameters(self.network)
        unused = self.spec.model.unused if self.spec.model is not None else frozenset()
        named = self.network.named_parameters() if self.trained == "full" else ()
        return [parameter for name, parameter in named if name.removeprefix("model.") not in unused]

    def train_all(self) -> None:
        """Full training. DeepSpeed flattens parameters, and can't with those that lie channels last."""
        self.trained = "full"
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs lack it
        for parameter in self.trained_parameters():
            parameter.requires_grad_()

    def train_adapters(self, adapters: LoRAConfig | Path) -> None:
        """Low-rank adapters: new ones by their config, or those that were saved in a folder.

        Raises `UserError` for convolutional networks.
        """
        network = self.network
        if isinstance(network, efficientnet.EfficientNetLite0) or network.about.convolutional:
            raise UserError(
                "model.backbone.train=lora: adapters are for linear layers, and model.backbone.path is a convolutional "
                'network; use "full" or "frozen"'
            )
        self.trained = "lora"
        if isinstance(adapters, Path):
            load_adapter(network.model, adapters)
        else:
            add_lora(network.model, adapters)

    def rows(self, pixels: Tensor) -> Tensor:
        """uint8 [M, S, S] -> [M, row], as they are stored."""
        if pixels.shape[-1] != self.image_size:
            raise ValueError(f"images of {pixels.shape[-1]} pixels for a backbone of {self.image_size}")
        rows: Tensor = self.network(pixels)
        return rows

    def forward(self, batch: PixelBatch) -> FeatureBatch:
        """Patches of all images, image by image; those of images that are padding are zero and masked."""
        patches = self.spec.levels.expand(self.rows(batch.pixels[batch.mask])).float()
        values = patches.new_zeros(*batch.mask.shape, *patches.shape[1:])
        values = values.masked_scatter(batch.mask[..., None, None], patches)
        views, mask = (part.repeat_interleave(patches.shape[1], dim=1) for part in (batch.views, batch.mask))
        return FeatureBatch(values.flatten(1, 2), views, mask)


def load_backbone(cfg: BackboneConfig, image_size: int | None = None) -> VisionBackbone:
    """The backbone of `cfg` with its published weights, in float32 and eval mode; `image_size` is `data.image_size`.

    Only what is trained requires gradients: with "full" every parameter that the patches depend on, with "lora" the
    adapters, with "frozen" nothing. Raises `UserError` where the backbone can't be loaded, or not be trained so.
    """
    backbone = VisionBackbone(BackboneSpec.of(cfg.path, image_size))
    if cfg.train == "lora":
        backbone.train_adapters(cfg.lora)
    elif cfg.train == "full":
        backbone.train_all()
    return backbone.eval()


def save_backbone(backbone: VisionBackbone, folder: Path) -> None:
    """Writes a trained backbone; a Hugging Face one as a folder that `AutoModel` loads (of a LoRA one the base, and
    peft's own format in `adapter/`)."""
    folder.mkdir(parents=True, exist_ok=True)
    network = backbone.network
    path = efficientnet.NAME if backbone.spec.model is None else None
    dtype = next(name for name, value in DTYPES.items() if value == next(backbone.parameters()).dtype)
    about = {"path": path, "image_size": backbone.image_size, "trained": backbone.trained, "dtype": dtype}
    (folder / _ABOUT).write_text(json.dumps(about, indent=2))
    if isinstance(network, efficientnet.EfficientNetLite0):
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / _WEIGHTS)
        return
    network.model.save_pretrained(folder, state_dict=base_state_dict(network.model))
    (folder / PROCESSOR_FILE).write_text(network.about.processor.text)
    if backbone.trained == "lora":
        save_adapter(network.model, folder / _ADAPTER)


def load_saved_backbone(folder: Path) -> VisionBackbone:
    """What `save_backbone` wrote: the same weights, adapters and trainable parameters, in their dtype and eval mode."""
    about = json.loads((folder / _ABOUT).read_text())
    backbone = VisionBackbone(BackboneSpec.of(about["path"] or str(folder), about["image_size"]))
    network = backbone.network
    if isinstance(network, efficientnet.EfficientNetLite0):
        network.load_state_dict(load_file(folder / _WEIGHTS))
    if about["trained"] == "lora":
        backbone.train_adapters(folder / _ADAPTER)
    elif about["trained"] == "full":
        backbone.train_all()
    cast_weights(backbone, DTYPES[about.get("dtype", "float32")])  # older folders don't tell: they were used in float32
    return backbone.eval()
