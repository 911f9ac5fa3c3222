"""Every family of language models that we claim: vLLM and transformers give the same reports and log-probabilities."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.engine import RolloutEngine
from actors.samples import Prompt, Sampling
from configs.schema import LLMConfig, LoRAConfig, ModelConfig
from rrg.model.build import build_policy, save_policy
from rrg.model.export import export_llm
from rrg.model.llm import load_llm
from rrg.model.lora import adapted_layers, adapter_state_dict, add_lora, base_state_dict, merge, merged_state_dict
from rrg.model.tokenizer import train_tokenizer

TEXTS = ["the heart is normal in size .", "there is a small left pleural effusion .", "no focal consolidation ."] * 40
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA_LIKE = SHAPE | {"max_position_embeddings": 256, "initializer_range": 0.2, "tie_word_embeddings": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE | {"model_type": "llama"},
    "llama with tied embeddings": LLAMA_LIKE
    | {"model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen2": LLAMA_LIKE | {"model_type": "qwen2", "num_key_value_heads": 1},
    "qwen3": LLAMA_LIKE | {"model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 32},
    "mistral": LLAMA_LIKE | {"model_type": "mistral", "num_key_value_heads": 1, "head_dim": 32},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 256,
        "initializer_range": 0.2,
    },
}


def hugging_face_folder(family: str, folder: Path) -> Path:
    """A tiny random model of the family, saved as users have theirs."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = train_tokenizer(TEXTS, 120)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = FAMILIES[family] | special | {"vocab_size": len(tokenizer) + 1}  # Qwen2's adds a token
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):  # zero in a new model, where a lost bias would not be seen
                value.normal_(std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Served:
    """A language model as the learner has it, and the rollout engine that is to serve it."""

    def __init__(self, llm: Any, tokenizer: Any, engine: RolloutEngine) -> None:
        self.llm, self.tokenizer, self.engine = llm, tokenizer, engine
        generator = np.random.default_rng(0)
        shapes = [(length, llm.config.hidden_size) for length in (7, 20, 40)]
        self.prompts = [Prompt(generator.normal(size=shape).astype(np.float32), seed=7) for shape in shapes]

    def check(self) -> float:
        """Greedy tokens and sampled log-probabilities against transformers; the largest difference of the latter."""
        eos = self.tokenizer.eos_token_id
        for sample in self.engine.generate(self.prompts, Sampling(16, eos, greedy=True)):
            assert sample.token_ids.tolist() == self.greedy(self.prompts[sample.index], 16, eos)
        gap = 0.0
        for sample in self.engine.generate(self.prompts, Sampling(16, eos)):
            expected = self.logprobs(self.prompts[sample.index], sample.token_ids)
            gap = max(gap, float(np.abs(sample.logprobs - expected).max()))
        assert gap < 1e-4
        return gap

    @torch.no_grad()
    def logprobs(self, prompt: Prompt, token_ids: np.ndarray) -> np.ndarray:
        ids = torch.as_tensor(token_ids, dtype=torch.long)[None]
        embeds = torch.cat([torch.as_tensor(prompt.embeds)[None], self.llm.get_input_embeddings()(ids)], dim=1)
        logits = self.llm(inputs_embeds=embeds).logits[0, len(prompt.embeds) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, ids[0, :, None])[:, 0].numpy()

    @torch.no_grad()
    def greedy(self, prompt: Prompt, count: int, eos: int) -> list[int]:
        ids: list[int] = []
        embeds = torch.as_tensor(prompt.embeds)[None]
        while len(ids) < count and eos not in ids:
            ids.append(int(self.llm(inputs_embeds=embeds).logits[0, -1].argmax()))
            embeds = torch.cat([embeds, self.llm.get_input_embeddings()(torch.tensor([[ids[-1]]]))], dim=1)
        return ids


@pytest.fixture(scope="module", params=FAMILIES)
def served(
    request: pytest.FixtureRequest,
    build_engine: Callable[..., RolloutEngine],
    tmp_path_factory: pytest.TempPathFactory,
) -> Served:
    folder = hugging_face_folder(request.param, tmp_path_factory.mktemp("hub") / "model")
    llm, tokenizer = load_llm(LLMConfig(path=str(folder)), [], torch.float32, cache_dir="unused")
    llm_dir = tmp_path_factory.mktemp("policy") / "llm"
    llm.save_pretrained(llm_dir)
    return Served(llm, tokenizer, build_engine(llm_dir))


def test_vllm_and_transformers_agree_through_weight_updates_and_lora(served: Served) -> None:
    """One test a family, for an engine takes seconds to build."""
    llm, engine = served.llm, served.engine
    assert engine.hidden_size == llm.config.hidden_size
    assert {name: tuple(value.shape) for name, value in llm.state_dict().items()} == engine.weight_shapes
    engine.load_weights(llm.state_dict(), version=0)
    gaps = {"as loaded": served.check()}
    with torch.no_grad():
        for value in llm.parameters():
            value.add_(torch.randn_like(value) * 0.02)
    engine.load_weights(llm.state_dict(), version=1)
    gaps["after an update"] = served.check()
    served.llm = llm
    base = {name: value.clone() for name, value in base_state_dict(llm).items()}
    add_lora(llm, LoRAConfig(rank=4))
    with torch.no_grad():
        for value in adapter_state_dict(llm).values():
            value.normal_(std=0.1)
    engine.load_weights(merged_state_dict(llm), version=2)
    gaps["with merged LoRA"] = served.check()
    with torch.no_grad():
        for value in adapter_state_dict(llm).values():
            value.normal_(std=0.05)
    engine.load_weights(merge(base, adapter_state_dict(llm), adapted_layers(llm)), version=3)
    gaps["with the adapter alone sent"] = served.check()
    print(llm.config.model_type, {name: f"{gap:.1e}" for name, gap in gaps.items()})


PLAIN_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", max_model_len=64, kv_cache_memory_bytes=32 << 20, enforce_eager=True)
params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
(output,) = llm.generate([{"prompt_token_ids": json.loads(sys.argv[2])}], params, use_tqdm=False)
print("TOKENS", json.dumps(list(output.outputs[0].token_ids)))
"""


def plain_vllm(folder: Path, prompt: list[int]) -> list[int]:
    """Greedy tokens of vLLM as anybody runs it, in a process of its own without anything of this project."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [sys.executable, "-c", PLAIN_VLLM, str(folder), json.dumps(prompt)]
    done = subprocess.run(
        command, env=environment | {"TORCH_COMPILE_DISABLE": "1"}, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("TOKENS")]
    tokens: list[int] = json.loads(line.removeprefix("TOKENS"))
    return tokens


@pytest.mark.parametrize(
    "family",
    [family if family == "qwen2" else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES],
)
def test_the_exported_model_gives_the_same_reports_in_plain_transformers_and_plain_vllm(
    family: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    path = str(hugging_face_folder(family, tmp_path / "hub"))
    cfg = ModelConfig(llm=LLMConfig(path=path, train="lora", lora=LoRAConfig(rank=4)), extractor_size=64)
    policy = build_policy(cfg, [], 0, grid=7, channels=1280, cache_dir="unused", target="findings")
    with torch.no_grad():
        for value in adapter_state_dict(policy.llm).values():
            value.normal_(std=0.1)
    save_policy(policy, tmp_path / "policy")
    export_llm(tmp_path / "policy", tmp_path / "out")
    ids = torch.arange(20, 40)[None]
    prompt = ids[0].tolist()
    expected, exported = [], AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        for _ in range(12):
            expected.append(int(policy.llm(ids).logits[0, -1].argmax()))
            assert int(exported(ids).logits[0, -1].argmax()) == expected[-1]
            ids = torch.cat([ids, torch.tensor([[expected[-1]]])], dim=1)
    assert plain_vllm(tmp_path / "out", prompt) == expected
