"""Image backbones: tiny checkpoints in the published formats, frozen and trained, on small real files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    BitImageProcessorPil,
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    LevitConfig,
    LevitModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
)

from configs.schema import BackboneConfig, DataConfig, LoRAConfig, ModelConfig
from rrg.data.study import Study
from rrg.errors import UserError
from rrg.model.backbone import FeatureStore, ImageStore, PixelStore, make_store
from rrg.model.efficientnet import EfficientNetLite0
from rrg.model.features import FeatureBatch, PixelBatch
from rrg.model.huggingface import HuggingFaceNetwork
from rrg.model.lora import merged_state_dict
from rrg.model.vision import VisionBackbone, load_backbone, load_saved_backbone, save_backbone
from tests.model.test_features import make_study

TINY: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CONV = {"hidden_sizes": [4, 4, 8, 8], "depths": [1, 1, 1, 1]}
LORA = LoRAConfig(rank=2, alpha=4.0)

# Model, patches a side and channels at 64 pixels, tokens before the patches.
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], int, int, int]] = {
    # A classifier's checkpoint: other names, a head, no pooling layer.
    "vit": (lambda: ViTForImageClassification(ViTConfig(**TINY, image_size=64, patch_size=16)), 4, 16, 1),
    "deit": (lambda: DeiTModel(DeiTConfig(**TINY, image_size=64, patch_size=16)), 4, 16, 2),
    # Made for another size: it interpolates its positions.
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**TINY, image_size=32, patch_size=16)), 4, 16, 1),
    "dinov2_registers": (
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**TINY, image_size=64, patch_size=16, num_register_tokens=4)
        ),
        4, 16, 5,
    ),
    "dinov3": (
        lambda: DINOv3ViTModel(DINOv3ViTConfig(**TINY, image_size=64, patch_size=16, num_register_tokens=4)), 4, 16, 5,
    ),
    "swin": (
        lambda: SwinModel(
            SwinConfig(embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4, image_size=64, patch_size=4)
        ),
        4, 32, 0,
    ),
    "resnet": (lambda: ResNetModel(ResNetConfig(embedding_size=4, **CONV)), 2, 8, 0),
    "convnext": (lambda: ConvNextModel(ConvNextConfig(**CONV)), 2, 8, 0),
}  # fmt: skip
TRANSFORMERS = [name for name in MODELS if name not in ("resnet", "convnext")]


def save_model(folder: Path, model: PreTrainedModel, processor: Mapping[str, Any] | None = None) -> str:
    """A checkpoint with a processor file in the oldest format, unless another one is given."""
    model.save_pretrained(folder)
    content = {"size": 64, "image_mean": MEAN, "image_std": STD} if processor is None else processor
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    found = {"efficientnet_lite0": "efficientnet_lite0"}
    for name, (make, *_) in MODELS.items():
        torch.manual_seed(0)
        model = make()
        # Fresh models start some parameters at zero or one, which would hide a part that is left out.
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        found[name] = save_model(folder / name, model)
    return found


def configs(tmp_path: Path, path: str, train: str = "frozen", size: int | None = 64) -> tuple[DataConfig, ModelConfig]:
    data = DataConfig(name="r2gen", cache_dir=str(tmp_path / "cache"), image_size=size)
    return data, ModelConfig(backbone=BackboneConfig(path=path, train=train, lora=LORA))


def studies(tmp_path: Path) -> list[Study]:
    return [make_study(tmp_path, "a"), make_study(tmp_path, "bc", views=2)]


def random_pixels(count: int, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, size, size), generator=generator, dtype=torch.uint8)


def batch_of(pixels: torch.Tensor) -> PixelBatch:
    """One study of a frontal image for each of `pixels`."""
    codes = torch.zeros(len(pixels), 1, dtype=torch.long)
    return PixelBatch(pixels[:, None], codes, torch.ones_like(codes, dtype=torch.bool))


def pixels_of(store: ImageStore, items: list[Study]) -> PixelBatch:
    batch = store.load_batch(items)
    assert isinstance(batch, PixelBatch)
    return batch


def features_of(store: ImageStore, items: list[Study]) -> FeatureBatch:
    batch = store.load_batch(items)
    assert isinstance(batch, FeatureBatch)
    return batch


@pytest.mark.parametrize("name", MODELS)
def test_patches_are_the_models_own_output_without_the_tokens_before_them(
    name: str, checkpoints: dict[str, str]
) -> None:
    _, grid, channels, prefix = MODELS[name]
    backbone = load_backbone(BackboneConfig(path=checkpoints[name]), 64)
    assert (backbone.image_size, backbone.grid, backbone.channels) == (64, grid, channels)
    pixels = random_pixels(2)
    with torch.no_grad():
        values = backbone(batch_of(pixels)).values
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))
        colours = (pixels[:, None].repeat(1, 3, 1, 1) / 255 - mean) / std
        hidden = AutoModel.from_pretrained(checkpoints[name]).eval()(pixel_values=colours).last_hidden_state
    expected = hidden.flatten(2).mT if hidden.dim() == 4 else hidden
    assert expected.shape[1] == prefix + grid**2
    assert torch.allclose(values, expected[:, prefix:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_patches_lie_where_their_pixels_do(name: str, checkpoints: dict[str, str]) -> None:
    """A spot in one corner changes the patch of that corner most."""
    backbone = load_backbone(BackboneConfig(path=checkpoints[name]), 64)
    blank = torch.full((1, 64, 64), 100, dtype=torch.uint8)
    spot = blank.clone()
    spot[:, :8, -8:] = 250
    with torch.no_grad():
        change = (backbone(batch_of(spot)).values - backbone(batch_of(blank)).values)[0].norm(dim=-1)
    assert int(change.argmax()) == backbone.grid - 1


@pytest.mark.parametrize("name", ["efficientnet_lite0", *MODELS])
def test_frozen_features_equal_those_of_a_trained_backbone(
    name: str, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    items = studies(tmp_path)
    frozen = make_store(*configs(tmp_path, checkpoints[name]))
    trained = make_store(*configs(tmp_path, checkpoints[name], "full"))
    assert (type(frozen), type(trained)) == (FeatureStore, PixelStore)
    frozen.prepare(items)
    trained.prepare(items)
    expected = features_of(frozen, items)
    backbone = load_backbone(BackboneConfig(path=checkpoints[name], train="full"), 64)
    with torch.no_grad():
        found = backbone(pixels_of(trained, items))
    assert (trained.grid, trained.channels) == (frozen.grid, frozen.channels) == (backbone.grid, backbone.channels)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.views, expected.views)
    # Float16 keeps 11 bits; batches of other sizes sum in another order.
    assert torch.allclose(found.values, expected.values, rtol=1e-3, atol=1e-3)
    assert float(found.values[~found.mask].abs().sum()) == 0.0


@pytest.mark.parametrize("name", ["efficientnet_lite0", *MODELS])
def test_gradients_reach_what_is_trained_and_nothing_else(name: str, checkpoints: dict[str, str]) -> None:
    modes = ["frozen", "full", *(["lora"] if name in TRANSFORMERS else [])]
    for mode in modes:
        backbone = load_backbone(BackboneConfig(path=checkpoints[name], train=mode, lora=LORA), 64).train()
        values = backbone(batch_of(random_pixels(2))).values
        assert values.requires_grad == (mode != "frozen")
        if mode != "frozen":
            values.square().sum().backward()
        reached = {key for key, parameter in backbone.named_parameters() if parameter.grad is not None}
        wanted = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
        assert reached == wanted
        assert len(backbone.trained_parameters()) == len(wanted)
        assert (mode == "lora") == any("lora_" in key for key in wanted)
        if mode == "lora":
            assert all("lora_" in key for key in wanted)


def test_batch_normalisation_keeps_its_statistics_while_it_is_trained(checkpoints: dict[str, str]) -> None:
    backbone = load_backbone(BackboneConfig(path=checkpoints["resnet"], train="full"), 64).train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    both = backbone(batch_of(random_pixels(2))).values
    alone = backbone(batch_of(random_pixels(2)[:1])).values
    assert torch.allclose(both[:1], alone, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in backbone.named_buffers())
    assert backbone.training


def rad_dino(folder: Path) -> str:
    """RAD-DINO's files, keys and values, but for the width and depth of its model."""
    config = Dinov2Config(
        apply_layernorm=True, attention_probs_dropout_prob=0.0, drop_path_rate=0.0, hidden_act="gelu",
        hidden_dropout_prob=0.0, hidden_size=8, image_size=518, initializer_range=0.02, layer_norm_eps=1e-6,
        layerscale_value=1.0, mlp_ratio=4, num_attention_heads=2, num_channels=3, num_hidden_layers=1, patch_size=14,
        qkv_bias=True, reshape_hidden_states=True, use_swiglu_ffn=False,
    )  # fmt: skip
    processor = {
        "crop_size": {"height": 518, "width": 518}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5307, 0.5307, 0.5307], "image_processor_type": "BitImageProcessor",
        "image_std": [0.2583, 0.2583, 0.2583], "resample": 3, "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 518},
    }  # fmt: skip
    return save_model(folder, Dinov2Model(config), processor)


def test_rad_dino_gets_the_pixels_that_its_own_processor_makes(tmp_path: Path) -> None:
    path = rad_dino(tmp_path / "rad-dino")
    backbone = load_backbone(BackboneConfig(path=path))
    assert (backbone.image_size, backbone.grid, backbone.channels) == (518, 37, 8)
    pixels = random_pixels(1, 518)
    # Of a picture of the right size the processor crops nothing.
    picture = PILImage.fromarray(pixels[0].numpy()).convert("RGB")
    expected = BitImageProcessorPil.from_pretrained(path)(picture, return_tensors="pt")["pixel_values"]
    assert isinstance(backbone.network, HuggingFaceNetwork)
    assert torch.allclose(backbone.network.normalise(pixels), expected, atol=1e-5)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(path).eval()(pixel_values=expected).last_hidden_state
        assert torch.allclose(backbone(batch_of(pixels)).values, hidden[:, 1:], atol=1e-4)


@pytest.mark.parametrize(
    ("processor", "size", "first"),
    [
        ({"size": 64, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, 64, -1.0),
        ({"size": {"height": 32, "width": 32}, "image_mean": 0.5, "image_std": 0.25}, 32, -2.0),
        ({"size": {"shortest_edge": 96}, "crop_size": 64, "do_normalize": False}, 64, 0.0),
        ({"size": {"shortest_edge": 96}, "crop_size": 64, "do_center_crop": False, "do_normalize": False}, 96, 0.0),
        ({"size": 64, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, 64, -1.0),
        ({"size": 64, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [0.5] * 3}, 64, -2.0),
    ],
)
def test_processor_files_of_all_ages_are_read(
    processor: dict[str, Any], size: int, first: float, tmp_path: Path
) -> None:
    path = save_model(tmp_path, MODELS["vit"][0](), processor)
    backbone = load_backbone(BackboneConfig(path=path))
    assert backbone.image_size == size
    assert isinstance(backbone.network, HuggingFaceNetwork)
    values = backbone.network.normalise(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1))
    assert values.shape == (2, 3, 1, 1)
    assert float(values[0, 0, 0, 0]) == pytest.approx(first, abs=1e-5)


def test_a_model_of_one_channel_gets_one(tmp_path: Path) -> None:
    model = AutoModel.from_config(ViTConfig(**TINY, image_size=64, patch_size=16, num_channels=1))
    path = save_model(tmp_path, model, {"size": 64, "image_mean": [0.5], "image_std": [0.5]})
    with torch.no_grad():
        assert load_backbone(BackboneConfig(path=path))(batch_of(random_pixels(1))).values.shape == (1, 16, 16)


def test_efficientnet_repeats_its_coarse_features_over_its_fine_ones() -> None:
    backbone = load_backbone(BackboneConfig())
    assert (backbone.image_size, backbone.grid, backbone.channels) == (224, 14, 1392)
    with torch.no_grad():
        pixels = random_pixels(1, 224)
        maps = backbone(batch_of(pixels)).values.view(14, 14, 1392)
        row = EfficientNetLite0(224)(pixels)[0]
    assert row.shape == (14 * 14 * 112 + 7 * 7 * 1280,)
    assert torch.equal(maps[..., :112].flatten(), row[: 14 * 14 * 112])
    coarse = maps[..., 112:].unflatten(0, (7, 2)).unflatten(2, (7, 2))
    assert torch.equal(coarse[:, 0, :, 0].flatten(), row[14 * 14 * 112 :])
    assert all(torch.equal(coarse[:, 0, :, 0], coarse[:, i, :, j]) for i in (0, 1) for j in (0, 1))


def test_efficientnet_gives_the_features_of_its_package() -> None:
    """Folding and padding otherwise change nothing: the last map is that of `EfficientNet.extract_features`."""
    from efficientnet_lite_pytorch import EfficientNet

    from rrg.model.efficientnet import weights_path

    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights_path()), image_size=96).eval()
    pixels = random_pixels(1, 96)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))
    with torch.no_grad():
        expected = network.extract_features((pixels[:, None] / 255 - mean) / std)
        row = EfficientNetLite0(96)(pixels)[0]
    assert torch.allclose(row[6 * 6 * 112 :].view(3, 3, 1280), expected[0].permute(1, 2, 0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("efficientnet_lite0", "full"),
        ("convnext", "full"),
        ("vit", "full"),
        ("vit", "lora"),
        ("dinov2_registers", "full"),
        ("dinov2_registers", "lora"),
    ],
)
def test_a_saved_backbone_is_loaded_bit_for_bit(
    name: str, mode: str, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    backbone = load_backbone(BackboneConfig(path=checkpoints[name], train=mode, lora=LORA), 64)
    with torch.no_grad():
        for parameter in backbone.trained_parameters():
            parameter.add_(0.05)
    batch = batch_of(random_pixels(2))
    for folder in (tmp_path / "first", tmp_path / "second"):
        save_backbone(backbone, folder)
        loaded = load_saved_backbone(folder)
        assert not loaded.training
        with torch.no_grad():
            assert torch.equal(loaded(batch).values, backbone(batch).values)
        assert loaded.state_dict().keys() == backbone.state_dict().keys()
        assert len(loaded.trained_parameters()) == len(backbone.trained_parameters()) > 0
        assert loaded.trained == mode
        # A loaded one can be saved again when the folder that it came from is gone.
        (folder / "preprocessor_config.json").unlink(missing_ok=True)
        backbone = loaded


def test_a_saved_backbone_is_a_plain_hugging_face_folder(checkpoints: dict[str, str], tmp_path: Path) -> None:
    backbone = load_backbone(BackboneConfig(path=checkpoints["vit"], train="full"), 64)
    save_backbone(backbone, tmp_path / "saved")
    again = load_backbone(BackboneConfig(path=str(tmp_path / "saved")))
    batch = batch_of(random_pixels(1))
    with torch.no_grad():
        assert torch.equal(again(batch).values, backbone(batch).values)


def test_merged_weights_of_an_adapted_backbone_fit_the_plain_one(checkpoints: dict[str, str]) -> None:
    adapted = load_backbone(BackboneConfig(path=checkpoints["vit"], train="lora", lora=LORA), 64)
    plain = load_backbone(BackboneConfig(path=checkpoints["vit"]), 64)
    with torch.no_grad():
        for parameter in adapted.trained_parameters():
            parameter.normal_(std=0.2)
        batch = batch_of(random_pixels(1))
        before = plain(batch).values
        plain.load_state_dict(merged_state_dict(adapted))
        assert torch.allclose(plain(batch).values, adapted(batch).values, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(plain(batch).values, before, rtol=1e-3, atol=1e-3)


def test_stored_features_belong_to_the_weights(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """Another checkpoint at the same path is another backbone, even if its file is as large and as old."""
    items = studies(tmp_path)
    path = save_model(tmp_path / "model", MODELS["vit"][0]())
    first = FeatureStore(*configs(tmp_path, path))
    first.prepare(items)
    save_model(tmp_path / "model", MODELS["vit"][0]())
    second = FeatureStore(*configs(tmp_path, path))
    assert not torch.allclose(first.load(items[0]).values, second.load(items[0]).values, atol=1e-2)


def test_pixels_are_those_of_the_image_files(tmp_path: Path) -> None:
    items = studies(tmp_path)
    store = PixelStore(*configs(tmp_path, "efficientnet_lite0", "full"))
    seen: list[tuple[str, int, int]] = []
    store.prepare(items, lambda *step: seen.append(step))
    assert seen == [("images", 3, 3)]
    batch = pixels_of(store, items)
    assert batch.pixels.shape == (2, 2, 64, 64)
    assert batch.pixels.dtype == torch.uint8
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert batch.views.tolist() == [[0, 0], [0, 1]]
    expected = np.asarray(PILImage.open(items[1].images[1].path))
    assert np.array_equal(batch.pixels[1, 1].numpy(), expected)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    items = studies(tmp_path)
    items[0].images[0].path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a-frontal\.png: is not a PNG, JPEG or DICOM image"):
        PixelStore(*configs(tmp_path, "efficientnet_lite0", "full")).prepare(items)


def refused(path: str | Path, size: int | None = None, train: str = "frozen") -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(BackboneConfig(path=str(path), train=train), size)
    return str(caught.value)


def test_what_cannot_be_a_backbone_is_refused_by_name(tmp_path: Path) -> None:
    vit = MODELS["vit"][0]()
    bert = save_model(tmp_path / "bert", BertModel(BertConfig(**TINY)))
    assert "model.backbone.path" in refused(bert)
    assert "bert model is no vision model" in refused(bert)
    vit.save_pretrained(tmp_path / "bare")
    assert "has no preprocessor_config.json" in refused(tmp_path / "bare")
    (tmp_path / "empty").mkdir()
    assert "not a Hugging Face model" in refused(tmp_path / "empty")
    assert "no such folder" in refused(tmp_path / "nowhere")
    # It leaves out three patches of four, in no order.
    masked = save_model(tmp_path / "mae", ViTMAEModel(ViTMAEConfig(**TINY, image_size=64, patch_size=16)))
    assert "do not tile the image" in refused(masked)
    wide = save_model(tmp_path / "wide", vit, {"size": {"height": 64, "width": 32}, "do_normalize": False})
    assert "tells no square input size" in refused(wide)
    assert "image_mean=None" in refused(save_model(tmp_path / "mean", vit, {"size": 64}))
    shallow = AutoModel.from_config(ViTConfig(**TINY | {"num_hidden_layers": 1}, image_size=64, patch_size=16))
    deep = Path(save_model(tmp_path / "deep", shallow))
    vit.config.save_pretrained(deep)
    assert "has no weights for 16 tensors of ViTModel" in refused(deep)


def test_a_model_that_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = refused("lm-rrg-tests/no-such-model")
    assert "model.backbone.path=lm-rrg-tests/no-such-model: no folder here" in text


def test_a_size_that_a_backbone_cannot_take_is_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    assert "data.image_size=70 does not suit" in refused(checkpoints["vit"], 70)
    assert "data.image_size=70 does not suit" in refused(checkpoints["dinov2"], 70)
    assert "data.image_size=68 does not suit" in refused(checkpoints["swin"], 68)
    assert "data.image_size=72 does not suit" in refused(checkpoints["resnet"], 72)
    assert "data.image_size=100 must be a multiple of 32" in refused("efficientnet_lite0", 100)
    # Its attention has a weight for each pair of places.
    fixed = LevitModel(
        LevitConfig(image_size=64, hidden_sizes=[8, 8, 8], num_attention_heads=[1, 1, 1], depths=[1] * 3)
    )
    path = save_model(tmp_path / "fixed", fixed)
    assert "data.image_size=128 does not suit" in refused(path, 128)


def test_positions_are_interpolated_for_another_size(checkpoints: dict[str, str]) -> None:
    backbone = load_backbone(BackboneConfig(path=checkpoints["vit"]), 96)
    assert (backbone.image_size, backbone.grid) == (96, 6)
    with torch.no_grad():
        assert backbone(batch_of(random_pixels(1, 96))).values.shape == (1, 36, 16)
    with pytest.raises(ValueError, match="images of 64 pixels"):
        backbone(batch_of(random_pixels(1)))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet", "vit"])
def test_a_backbone_in_bfloat16_gives_nearly_the_same(name: str, checkpoints: dict[str, str]) -> None:
    backbone = load_backbone(BackboneConfig(path=checkpoints[name]), 64)
    batch = batch_of(random_pixels(1))
    with torch.no_grad():
        exact = backbone(batch).values
        rounded = backbone.to(torch.bfloat16)(batch).values
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet", "convnext"])
def test_adapters_on_convolutions_are_refused(name: str, checkpoints: dict[str, str]) -> None:
    assert "model.backbone.train=lora" in refused(checkpoints[name], 64, "lora")


def test_a_backbone_stays_as_it_is_when_it_is_frozen() -> None:
    backbone: VisionBackbone = load_backbone(BackboneConfig())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.trained_parameters() == []
