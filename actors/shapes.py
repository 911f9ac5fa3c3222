"""Names and shapes of a language model's weights, and the check of weights against them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from actors.errors import WeightsError


def parameters_of(llm_dir: Path) -> tuple[dict[str, tuple[int, ...]], int]:
    """Names and shapes of the checkpoint that the config in `llm_dir` describes, and its hidden size."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(llm_dir)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}, config.hidden_size


def check_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], version: int) -> None:
    """Raise WeightsError unless `weights` has exactly the expected names and shapes and every value is finite."""
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, expected, version)
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.numel() and not all(e.isfinite() for e in torch.aminmax(tensor)):
            raise WeightsError(f"weights version {version}: {name} holds NaN or infinite values")


def check_shapes(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], version: int) -> None:
    """Raise WeightsError unless `shapes` has exactly the expected names and shapes."""
    if missing := expected.keys() - shapes.keys():
        raise WeightsError(f"weights version {version} lacks {len(missing)} tensors: {sorted(missing)[:5]}")
    if unknown := shapes.keys() - expected.keys():
        raise WeightsError(f"weights version {version} has {len(unknown)} unknown tensors: {sorted(unknown)[:5]}")
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise WeightsError(f"weights version {version}: {name} is {shape}, not {expected[name]}")
