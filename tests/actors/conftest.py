"""A real vLLM engine on a tiny random Llama, shared by the tests of this folder; transformers has the same model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.engine import RolloutEngine, rollout_env
from configs.schema import RolloutConfig

HIDDEN, VOCAB, EOS = 64, 120, 2


def random_llama(seed: int) -> Any:
    """A random Llama whose next-token distribution is far from flat and depends on the whole prompt."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, tie_word_embeddings=False, initializer_range=0.2, eos_token_id=EOS,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def named_arrays(model: Any) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


@pytest.fixture(scope="session")
def rollout_config() -> RolloutConfig:
    return RolloutConfig(max_num_seqs=64, kv_cache_mib=64, max_model_len=128, timeout_s=60.0)


@pytest.fixture(scope="session")
def llama() -> Any:
    return random_llama(0)


@pytest.fixture(scope="session")
def other_llama() -> Any:
    return random_llama(1)


@pytest.fixture(scope="session")
def _engine(rollout_config: RolloutConfig, llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    os.environ.update(rollout_env(rollout_config))
    folder: Path = tmp_path_factory.mktemp("llm")
    llama.config.save_pretrained(folder)
    engine = RolloutEngine(folder, rollout_config)
    yield engine
    engine.close()


@pytest.fixture
def engine(_engine: RolloutEngine, llama: Any) -> RolloutEngine:
    """The engine with the weights of `llama`, version 0."""
    _engine.load_weights(named_arrays(llama), version=0)
    return _engine
