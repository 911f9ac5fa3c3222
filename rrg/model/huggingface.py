"""Any Hugging Face vision model as a backbone: ViT, DeiT, DINOv2 (RAD-DINO), DINOv3, Swin, ResNet, ConvNeXt, ...

Contract: the patches are the model's `last_hidden_state` without the tokens before them (class, distillation and
register tokens), after the final norm where the model has one. Nothing is known of single architectures: shapes, the
tokens before the patches and the parameters that the patches do not depend on are read off a copy of the model without
weights (torch's meta device), which takes a fraction of a second.

Pixels: the input size, rescaling, mean and standard deviation are those of the checkpoint's processor file. The image
is not: a processor resizes the shorter side and crops the centre, which cuts off lung apices and costophrenic angles;
ours (`rrg.data.images.load_image`) is the whole picture, scaled to fit (bilinear) and padded with black.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from rrg.errors import UserError
from rrg.model.pixels import Normalise, PatchLevels

PROCESSOR_FILE: Final = "preprocessor_config.json"
_LOG: Final = logging.getLogger(__name__)
_PREFIX_TOKENS: Final = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
# DINOv3's ConvNeXt puts the mean of its patches before them, which no parameter tells.
_POOLED_FIRST: Final = ("dinov3_convnext",)
# What models raise for a size that they were not made for, or for a library that they need.
_UNSUITED: Final = (ValueError, RuntimeError, TypeError, NotImplementedError, AttributeError, ImportError)


@dataclass(frozen=True)
class Processor:
    """A processor file: its `text` (JSON), input size (pixels), and how bytes become numbers (see `Normalise`)."""

    text: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float


@dataclass(frozen=True)
class VisionModel:
    """A checkpoint that can be a backbone at one image size: all that can be told without its weights.

    `prefix`: tokens before the patches. `options`: arguments of the model's forward pass. `unused`: names of the
    parameters that the patches do not depend on. `convolutional`: the model gives maps, not tokens.
    """

    folder: Path
    config: PretrainedConfig
    processor: Processor
    levels: PatchLevels
    prefix: int
    options: Mapping[str, bool]
    unused: frozenset[str]
    convolutional: bool

    def fingerprint(self) -> str:
        """Changes whenever features would: of the config and processor files, the whole content of the weights' files,
        and the image size (a second a gigabyte)."""
        digest = hashlib.sha256(f"last hidden state,{self.levels},{self.processor.text}".encode())
        for path in (self.folder / "config.json", *_weight_files(self.folder)):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


class HuggingFaceNetwork(nn.Module):
    """The model with its weights, in float32: pixels to rows of `VisionModel.levels`."""

    def __init__(self, about: VisionModel) -> None:
        super().__init__()
        self.about = about
        self.model = _load_model(about)
        channels = _channels(about.config)
        processor = about.processor
        self.normalise = Normalise(channels, processor.mean, processor.std, processor.scale)

    def forward(self, pixels: Tensor) -> Tensor:
        """Grey `pixels` uint8 [M, S, S] -> rows [M, N * C]."""
        values = self.normalise(pixels).to(self.model.dtype)
        hidden = self.model(pixel_values=values, **self.about.options).last_hidden_state
        return _patches(hidden, self.about.prefix).flatten(1)


def find_model(path: str, image_size: int | None) -> VisionModel:
    """Looks at a checkpoint, for images of `image_size` pixels (None: its processor's). Raises `UserError`, which names
    `model.backbone.path` or `data.image_size`, where it can't be a backbone."""
    folder = _folder(path)
    where = f"model.backbone.path={path}"
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{where}: not a Hugging Face model ({error})") from error
    kind = _model_class(config, where)
    processor = _read_processor(folder, where, _channels(config))
    size = processor.size if image_size is None else image_size
    if size == processor.size:
        refusal = f"{where} cannot be used with images of {size} pixels"
    else:
        refusal = f"data.image_size={size} does not suit {where} (made for {processor.size}; null takes that)"
    try:
        # Gradients tell which parameters are used, also where the caller wants none.
        with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
            model = kind(config, **_arguments(kind)).eval()
            pixels = torch.zeros(1, _channels(config), size, size)
            options = _options(model, config, size)
            hidden = model(pixel_values=pixels, **options).last_hidden_state
    except _UNSUITED as error:
        raise UserError(f"{refusal}: {error}") from error
    prefix = _prefix_tokens(model, config)
    patches = _patches(hidden, prefix)
    convolutional = hidden.dim() == 4
    grid = _square(patches.shape[1], refusal)
    _check_stride(size, grid, config, convolutional, refusal)
    with torch.enable_grad():
        torch.autograd.backward(patches.sum())
    unused = frozenset(name for name, parameter in model.named_parameters() if parameter.grad is None)
    levels = PatchLevels(size, ((grid, patches.shape[2]),))
    return VisionModel(folder, config, processor, levels, prefix, options, unused, convolutional)


def _folder(path: str) -> Path:
    """The checkpoint's folder; what is no folder is a name on the Hugging Face hub, and downloaded once."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or path.startswith((".", "~")):
        raise UserError(f"model.backbone.path={path}: no such folder")
    _LOG.warning("model.backbone.path=%s is no folder: looked up on the Hugging Face hub", path)
    try:
        found = Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
        if not any(found.glob("*.safetensors")):
            snapshot_download(path, allow_patterns=["*.bin"])
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"model.backbone.path={path}: no folder here, and the Hugging Face hub did not give it ({error}); give the "
            "folder of a model that you downloaded"
        ) from error
    return found


def _weight_files(folder: Path) -> list[Path]:
    """What `from_pretrained` reads: safetensors if there are some."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def _model_class(config: PretrainedConfig, where: str) -> type[PreTrainedModel]:
    kind: type[PreTrainedModel] | tuple[type[PreTrainedModel], ...] | None = MODEL_MAPPING.get(type(config), None)
    if kind is None or isinstance(kind, tuple) or kind.main_input_name != "pixel_values":
        raise UserError(f"{where}: a {config.model_type} model is no vision model, or not one of images alone")
    return kind


def _arguments(kind: type[PreTrainedModel]) -> dict[str, bool]:
    """No pooling layer, where that is a choice: patches don't need it, and many checkpoints have no weights for it."""
    name = "add_pooling_layer"
    return {name: False} if name in inspect.signature(kind.__init__).parameters else {}


def _options(model: PreTrainedModel, config: PretrainedConfig, size: int) -> dict[str, bool]:
    """Positions are interpolated for another size than they were learnt for. (DINOv2 does so without being asked.)"""
    name = "interpolate_pos_encoding"
    known = name in inspect.signature(model.forward).parameters
    return {name: True} if known and config.to_dict().get("image_size") not in (size, [size, size]) else {}


def _channels(config: PretrainedConfig) -> int:
    channels: int = config.to_dict().get("num_channels", 3)
    return channels


def _prefix_tokens(model: PreTrainedModel, config: PretrainedConfig) -> int:
    """Tokens before the patches, by the parameters that they are made of: [1, tokens, C] or [C]."""
    count = int(config.model_type in _POOLED_FIRST)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in _PREFIX_TOKENS:
            count += parameter.shape[1] if parameter.dim() == 3 else 1
    return count


def _patches(hidden: Tensor, prefix: int) -> Tensor:
    """Tokens [M, prefix + N, C] or maps [M, C, H, W] -> [M, N, C]."""
    return hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden[:, prefix:]


def _square(patches: int, refusal: str) -> int:
    grid = math.isqrt(patches)
    if grid == 0 or grid * grid != patches:
        raise UserError(f"{refusal}: it gives {patches} patches, which are no square grid")
    return grid


def _check_stride(size: int, grid: int, config: PretrainedConfig, convolutional: bool, refusal: str) -> None:
    """Patches must tile the image, or boxes that are read from them would lie beside what they show."""
    patch, stages = config.to_dict().get("patch_size"), config.to_dict().get("depths")
    stride = size // grid
    whole = size % grid == 0
    if convolutional:
        whole = whole and stride & (stride - 1) == 0
    if isinstance(patch, int):
        whole = whole and (stride % patch == 0 if stages else stride == patch)
    if not whole:
        raise UserError(f"{refusal}: its {grid} x {grid} patches do not tile the image")


def _read_processor(folder: Path, where: str, channels: int) -> Processor:
    path = _processor_path(folder, where)
    content: dict[str, Any] = json.loads(path.read_text())
    content = content.get("image_processor", content)
    text = json.dumps(content, indent=2)
    size = content.get("size")
    if content.get("crop_size") is not None and content.get("do_center_crop", True):
        size = content["crop_size"]
    scale = float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 1.0
    if not content.get("do_normalize", True):
        return Processor(text, _side(size, path, where), (0.0,), (1.0,), scale)
    mean, std = (_values(content, name, channels, path, where) for name in ("image_mean", "image_std"))
    return Processor(text, _side(size, path, where), mean, std, scale)


def _processor_path(folder: Path, where: str) -> Path:
    for name in (PROCESSOR_FILE, "processor_config.json"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{where}: {folder} has no {PROCESSOR_FILE}, which tells input size and normalisation; add that of the model "
        'that it was trained from, or write one: {"size": 224, "image_mean": [...], "image_std": [...]}'
    )


def _side(size: object, path: Path, where: str) -> int:
    """The side of a square input: from 224, {"shortest_edge": 224}, {"height": 224, "width": 224} or [224, 224]."""
    sides = list(size.values()) if isinstance(size, dict) else size if isinstance(size, list) else [size]
    if not sides or not isinstance(sides[0], int) or any(side != sides[0] for side in sides):
        raise UserError(f"{where}: {path.name} tells no square input size (size={size}); write one into it")
    side: int = sides[0]
    return side


def _values(content: Mapping[str, Any], name: str, channels: int, path: Path, where: str) -> tuple[float, ...]:
    values = content.get(name)
    values = [values] if isinstance(values, int | float) else values
    if not values or len(values) not in (1, channels):
        raise UserError(f"{where}: {path.name} has {name}={values}; the model needs one value, or {channels}")
    return tuple(float(value) for value in values)


def _load_model(about: VisionModel) -> PreTrainedModel:
    kind = _model_class(about.config, str(about.folder))
    try:
        model, loaded = kind.from_pretrained(
            about.folder, dtype=torch.float32, output_loading_info=True, **_arguments(kind)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model.backbone.path: the weights in {about.folder} can't be loaded ({error})") from error
    missing = sorted(set(loaded["missing_keys"]) - about.unused)
    if missing:
        raise UserError(
            f"model.backbone.path: {about.folder} has no weights for {len(missing)} tensors of {kind.__name__}, the "
            f"first is {missing[0]}"
        )
    plain: PreTrainedModel = model
    return plain.eval()
