"""Low-rank adapters (peft) on a language model or an image backbone: added, merged, saved, loaded.

Contract: adapters are injected in place, so that the module keeps its class and its way to be called; outside of
this file nobody has to know the names that peft gives to the parts of an adapted layer. `merged_state_dict` has the
names of the module before it was adapted, and equals peft's `merge_and_unload`. A saved adapter is a folder of peft's
own format, which `PeftModel.from_pretrained` loads too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from configs.schema import LoRAConfig
from rrg.errors import UserError

ALL_LINEAR: Final = "all-linear"
_NAME: Final = "default"
_FILE: Final = "adapter_model.safetensors"
# What `PeftModel` puts before every name of the module that it wraps.
_PREFIX: Final = "base_model.model."


@dataclass(frozen=True)
class AdaptedLayer:
    """How B @ A becomes the difference of a weight: the factor, and whether the weight is stored [in, out] (GPT-2)."""

    scaling: float
    transposed: bool

    def merge(self, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """`weight` + scaling * B @ A, summed in float32, in the weight's dtype."""
        delta = b.float() @ a.float()
        return (weight.float() + (delta.T if self.transposed else delta) * self.scaling).to(weight.dtype)


def add_lora(module: nn.Module, cfg: LoRAConfig) -> None:
    """Puts an adapter beside every linear layer that `cfg.targets` names; only adapters require gradients then.

    They change nothing at first (B is zero); A is random. "all-linear" leaves out a language model's output layer.
    Raises UserError where no linear layer has one of the names.
    """
    targets = _targets(module, cfg.targets)
    config = LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        target_modules=sorted(targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in targets.values()),
        task_type=None if _output_layer(module) is None else "CAUSAL_LM",
    )
    inject_adapter_in_model(config, module, _NAME)


def is_lora(module: nn.Module) -> bool:
    """Whether `module` has adapters."""
    return bool(adapted_layers(module))


def adapted_layers(module: nn.Module) -> dict[str, AdaptedLayer]:
    """The adapted layers of `module` by their names."""
    return {
        name: AdaptedLayer(layer.scaling[_NAME], isinstance(layer.get_base_layer(), Conv1D))
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The adapters of a module that has some, else all of its parameters."""
    adapters = _adapter_parameters(module)
    return list(adapters.values()) if adapters else list(module.parameters())


def adapter_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """A and B of every adapted layer, as `LAYER.lora_A.weight` [rank, in] and `LAYER.lora_B.weight` [out, rank]."""
    return {name: parameter.detach() for name, parameter in _adapter_parameters(module).items()}


def base_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of the module without its adapters."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in module.state_dict().items()
        if f".{_NAME}." not in name or ".lora_" not in name
    }


def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of the plain module that does what `module` does; of a module without adapters its own."""
    return merge(base_state_dict(module), adapter_state_dict(module), adapted_layers(module))


@torch.no_grad()
def merge(
    base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], layers: Mapping[str, AdaptedLayer]
) -> dict[str, Tensor]:
    """`base` with the adapted layers' weights replaced by new, merged ones; the others are shared."""
    merged = dict(base)
    for name, layer in layers.items():
        a, b = adapter[f"{name}.lora_A.weight"], adapter[f"{name}.lora_B.weight"]
        merged[f"{name}.weight"] = layer.merge(base[f"{name}.weight"], a, b)
    return merged


def remove_lora(module: nn.Module) -> None:
    """Takes the adapters out of `module`, which is left with its base weights."""
    for name in adapted_layers(module):
        layer = module.get_submodule(name)
        if isinstance(layer, LoraLayer):
            module.set_submodule(name, layer.get_base_layer())


def save_adapter(module: nn.Module, folder: Path) -> None:
    """Writes the adapters of `module` as peft does."""
    folder.mkdir(parents=True, exist_ok=True)
    _config_of(module).save_pretrained(folder)
    tensors = {_PREFIX + name: value.contiguous() for name, value in adapter_state_dict(module).items()}
    save_file(tensors, folder / _FILE, metadata={"format": "pt"})


def load_adapter(module: nn.Module, folder: Path) -> None:
    """Puts the adapters that `save_adapter` wrote into `module`, which has none yet. No random number is drawn."""
    config = dataclasses.replace(LoraConfig.from_pretrained(folder), inference_mode=False)
    inject_adapter_in_model(config, module, _NAME, low_cpu_mem_usage=True)
    tensors = load_file(folder / _FILE)
    names = set(adapter_state_dict(module))
    if names != {name.removeprefix(_PREFIX) for name in tensors}:
        raise UserError(f"{folder / _FILE} has adapters of other layers than this model: it belongs to another one")
    for name, value in tensors.items():
        layer, _, part = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        module.get_submodule(f"{layer}.{part}.{_NAME}").weight = nn.Parameter(value)


def _targets(module: nn.Module, targets: str) -> dict[str, nn.Module]:
    """The layers that get an adapter, by the shortest names that peft finds them by."""
    linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    head = _output_layer(module)
    if targets == ALL_LINEAR:
        # Complete names: a last part such as "0" would be found in other places too.
        chosen = {name: layer for name, layer in linear.items() if layer is not head}
        missing = set() if chosen else {ALL_LINEAR}
    else:
        wanted = {name.strip() for name in targets.split(",")}
        chosen = {name: layer for name, layer in linear.items() if _matches(name, wanted)}
        missing = {name for name in wanted if not any(_matches(layer, {name}) for layer in chosen)}
    if missing:
        parts = sorted({name.rpartition(".")[2] for name in linear})
        raise UserError(
            f"lora.targets={targets!r}: this {type(module).__name__} has no linear layer {', '.join(sorted(missing))}; "
            f'use "{ALL_LINEAR}" or some of: {", ".join(parts) or "(it has none)"}'
        )
    return chosen


def _matches(name: str, targets: set[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _output_layer(module: nn.Module) -> nn.Module | None:
    """What gives a language model's logits; None for other modules."""
    if isinstance(module, PreTrainedModel) and module.can_generate():
        head: nn.Module = module.get_output_embeddings()
        return head
    return None


def _adapter_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name.replace(f".{_NAME}.", "."): parameter
        for name, parameter in module.named_parameters()
        if f".lora_A.{_NAME}." in name or f".lora_B.{_NAME}." in name
    }


def _config_of(module: nn.Module) -> LoraConfig:
    """The peft config that `module` was adapted by."""
    (config,) = [value for name, value in vars(module).items() if name == "peft_config"]
    found: LoraConfig = config[_NAME]
    return found
